// Preloaded for compute-sanitizer's initcheck, which does not see what a kernel copies out of
// shared memory in bulk (TMA), as cuBLASLt's do: what a product is going to write, its workspace
// too, is cleared before it, so that the tool knows of it. Recordings are left as they are.
#include <cublasLt.h>
#include <cuda.h>
#include <dlfcn.h>

#include <cstring>

namespace {

using Dlsym = void* (*)(void*, const char*);
Dlsym real_dlsym() {
  static const auto real =
      reinterpret_cast<Dlsym>(dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5"));  // x86-64's first
  return real;
}

void* g_library = nullptr;  ///< cuBLASLt

template <class F>
F* function(void* library, const char* name) {
  return reinterpret_cast<F*>(real_dlsym()(library, name));
}

void clear(void* to, cublasLtMatrixLayout_t layout, void* workspace, size_t bytes,
           cudaStream_t stream) {
  static void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
  CUstreamCaptureStatus status{};
  const auto capturing =
      function<CUresult(CUstream, CUstreamCaptureStatus*)>(driver, "cuStreamIsCapturing");
  if (capturing(stream, &status) != CUDA_SUCCESS || status) return;
  const auto run =
      function<CUresult(CUdeviceptr, unsigned char, size_t, CUstream)>(driver, "cuMemsetD8Async");
  if (bytes) run(CUdeviceptr(workspace), 0, bytes, stream);
  if (!layout) return;
  const auto read = function<decltype(cublasLtMatrixLayoutGetAttribute)>(
      g_library, "cublasLtMatrixLayoutGetAttribute");
  const auto get = [&](cublasLtMatrixLayoutAttribute_t which, auto value) {
    read(layout, which, &value, sizeof value, nullptr);
    return value;
  };
  const size_t size = get(CUBLASLT_MATRIX_LAYOUT_TYPE, uint32_t()) == CUDA_R_32F ? 4 : 2;
  const uint64_t rows = get(CUBLASLT_MATRIX_LAYOUT_ROWS, uint64_t()),
                 of_one = get(CUBLASLT_MATRIX_LAYOUT_COLS, uint64_t());
  const auto ld = size_t(get(CUBLASLT_MATRIX_LAYOUT_LD, int64_t())),
             stride = size_t(get(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, int64_t()));
  const auto count = uint64_t(get(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, int32_t()));
  // At once where the batch's lie one after the other, or beside each other in every column.
  const bool after = stride == ld * of_one, beside = stride == rows && ld >= rows * count;
  const uint64_t batch = after || beside ? 1 : count, columns = after ? of_one * count : of_one,
                 width = beside ? rows * count : rows;
  if (batch == 1 && width == ld) {
    run(CUdeviceptr(to), 0, width * columns * size, stream);
    return;
  }
  const auto set = function<CUresult(CUdeviceptr, size_t, unsigned char, size_t, size_t, CUstream)>(
      driver, "cuMemsetD2D8Async");
  for (uint64_t b = 0; b < batch; ++b)
    set(CUdeviceptr(to) + b * stride * size, ld * size, 0, width * size, columns, stream);
}

cublasStatus_t product(cublasLtHandle_t handle, cublasLtMatmulDesc_t how, const void* alpha,
                       const void* a, cublasLtMatrixLayout_t la, const void* b,
                       cublasLtMatrixLayout_t lb, const void* beta, const void* c,
                       cublasLtMatrixLayout_t lc, void* d, cublasLtMatrixLayout_t ld,
                       const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t bytes,
                       cudaStream_t stream) {
  const bool written = c != d || *static_cast<const float*>(beta) == 0;
  clear(d, written ? ld : nullptr, workspace, bytes, stream);
  return function<decltype(cublasLtMatmul)>(g_library, "cublasLtMatmul")(
      handle, how, alpha, a, la, b, lb, beta, c, lc, d, ld, algorithm, workspace, bytes, stream);
}

}  // namespace

extern "C" void* dlsym(void* library, const char* name) noexcept {
  if (std::strcmp(name, "cublasLtMatmul") != 0) return real_dlsym()(library, name);
  g_library = library;
  return reinterpret_cast<void*>(&product);
}
