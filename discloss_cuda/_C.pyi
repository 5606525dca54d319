"""Build facts of the compiled module; importing it registers the ops."""

built_for_torch: str
with_cuda: bool
cuda_architectures: str
cuda_version: str
