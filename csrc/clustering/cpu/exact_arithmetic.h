// From here on no product is fused with a sum: every instruction set and device gives the same
// bits. Included behind begin_avx2.h or begin_avx512.h, whose end ends this too.
#pragma once

#ifdef __clang__
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif
