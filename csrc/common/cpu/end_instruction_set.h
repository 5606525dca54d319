// The end of what begin_avx2.h or begin_avx512.h began.
#pragma once

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
