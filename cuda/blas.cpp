// Matrix products by cuBLASLt: found where a toolkit or a Python wheel put it, since a program that
// needed it to start would start nowhere else; plans cached by shape.
#include "cuda/blas.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>

#include "cuda/libraries.h"
#include "cuda/module_parts.h"
#include "cuda/runtime.h"

namespace ff::cuda {
namespace {

struct Lt {
  cublasLtHandle_t handle = nullptr;
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtGetStatusString) status_string;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatrixLayoutSetAttribute) layout_set;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
};
Lt g_lt;

std::string library_name() { return cat("libcublasLt.so.", CUBLAS_VER_MAJOR); }

void* open_library() {
  const LibraryFile file = find_library(library_name());
  if (file.handle) return file.handle;
  fail(Exit::kDevice, "--device cuda needs ", library_name(), " (cuBLAS of CUDA ", CUBLAS_VER_MAJOR,
       "): it is ", file.text,
       "; install the CUDA toolkit or `pip install nvidia-cublas`, or add its folder to "
       "LD_LIBRARY_PATH");
}

void check_lt(cublasStatus_t status, const char* call, const std::string& what = "") {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(Exit::kDevice, call, what.empty() ? "" : " of ", what,
       " failed: ", g_lt.status_string(status));
}

/// A matrix for cuBLASLt, which counts columns first: `rows` are contiguous.
struct Matrix {
  int64_t rows, columns, ld, batch_stride;
  bool transposed;
};

bool lies(const Tensor& t, int contiguous, int other) {
  return (t.size(contiguous) == 1 || t.stride(contiguous) == 1) &&
         (t.size(other) == 1 || t.stride(other) >= t.size(contiguous));
}

/// t [b, m, n] as the column-major n x m matrix, transposed where its m axis is the contiguous one.
Matrix matrix_of(const Tensor& t) {
  const int inner = lies(t, 2, 1) ? 2 : 1, outer = 3 - inner;
  const int64_t ld = t.size(outer) == 1 ? t.size(inner) : t.stride(outer);
  return {t.size(inner), t.size(outer), std::max<int64_t>(ld, 1), t.size(0) == 1 ? 0 : t.stride(0),
          inner == 1};
}

/// The largest power of two up to 256 that divides an address.
uint32_t alignment(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  return address ? uint32_t(std::min<uintptr_t>(address & ~(address - 1), 256)) : 256;
}

using Key = std::array<int64_t, 23>;

struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, base = nullptr;
  cublasLtMatmulAlgo_t algo;
  size_t workspace = 0;
  Dtype bias_type = Dtype::f32;
};

constexpr uint64_t kMostWorkspace = uint64_t(32) << 20;
constexpr int kTile = 128;  ///< rows and columns that a multiprocessor makes at a time

template <class T>
void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t name, const T& value) {
  check_lt(g_lt.desc_set(desc, name, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
}

cublasLtMatrixLayout_t layout(const Matrix& m, cudaDataType_t type, int32_t batch) {
  cublasLtMatrixLayout_t made;
  check_lt(g_lt.layout_create(&made, type, uint64_t(m.rows), uint64_t(m.columns), m.ld),
           "cublasLtMatrixLayoutCreate");
  check_lt(g_lt.layout_set(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch),
           "cublasLtMatrixLayoutSetAttribute");
  check_lt(g_lt.layout_set(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &m.batch_stride,
                           sizeof m.batch_stride),
           "cublasLtMatrixLayoutSetAttribute");
  return made;
}

/// Chooses an algorithm that needs at most so much memory. With a bias of another type than the
/// library takes: false.
bool choose(Plan& plan, const std::array<uint32_t, 4>& aligned, uint64_t workspace) {
  cublasLtMatmulPreference_t preference;
  check_lt(g_lt.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
    check_lt(g_lt.preference_set(preference, name, &value, sizeof value),
             "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
  // Sums that are split are joined in f32 and in order: the same bits every time.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aligned[0]);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, aligned[1]);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, aligned[3]);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, aligned[2]);
  cublasLtMatmulHeuristicResult_t best;
  int found = 0;
  const cublasStatus_t status = g_lt.heuristic(g_lt.handle, plan.desc, plan.a, plan.b, plan.base,
                                               plan.c, preference, 1, &best, &found);
  g_lt.preference_destroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS || !found || best.state != CUBLAS_STATUS_SUCCESS)
    return false;
  plan.algo = best.algo;
  plan.workspace = best.workspaceSize;
  return true;
}

std::string describe(const Tensor& a, const Tensor& w, const Tensor& c) {
  return cat(a.shape(), " strides ", a.strides(), " by ", w.shape(), " strides ", w.strides(),
             " into strides ", c.strides(), " ", name_of(c.dtype()));
}

/// The plan for x (column-major n x k) times y (k x m) into c (n x m).
const Plan& plan_for(const Tensor& a, const Tensor& w, const Tensor& bias, Activation act,
                     const Tensor& base, const Tensor& c) {
  static std::map<Key, Plan> plans;
  static std::mutex mutex;
  const Matrix x = matrix_of(w), y = matrix_of(a), z = matrix_of(c),
               old = matrix_of(base ? base : c);
  const std::array<uint32_t, 4> aligned = {alignment(w.raw()), alignment(a.raw()),
                                           alignment(c.raw()),
                                           alignment(base ? base.raw() : c.raw())};
  const bool tf32 = a.dtype() == Dtype::f32 && tf32_products();
  const Key key = {
      x.rows,
      x.columns,
      x.ld,
      x.batch_stride,
      x.transposed,
      y.rows,
      y.columns,
      y.ld,
      y.batch_stride,
      y.transposed,
      z.rows,
      z.columns,
      z.ld,
      z.batch_stride,
      old.ld,
      old.batch_stride,
      c.size(0),
      tf32 * 16 + int64_t(a.dtype()) * 4 + int64_t(c.dtype()),
      int64_t(act) * 8 + base.defined() * 4 + (bias ? 1 + int64_t(bias.dtype() == c.dtype()) : 0),
      aligned[0],
      aligned[1],
      aligned[2],
      aligned[3]};
  const std::lock_guard lock(mutex);
  const auto known = plans.find(key);
  if (known != plans.end()) return known->second;
  Plan plan;
  const auto type_of = [](const Tensor& t) {
    return t.dtype() == Dtype::bf16 ? CUDA_R_16BF : CUDA_R_32F;
  };
  check_lt(g_lt.desc_create(&plan.desc, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                            CUDA_R_32F),
           "cublasLtMatmulDescCreate");
  set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, y.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  plan.a = layout(x, type_of(w), int32_t(c.size(0)));
  plan.b = layout(y, type_of(a), int32_t(c.size(0)));
  plan.c = layout(z, type_of(c), int32_t(c.size(0)));
  plan.base = layout(old, type_of(c), int32_t(c.size(0)));
  const cublasLtEpilogue_t epilogue =
      bias ? (act == Activation::kRelu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS)
           : (act == Activation::kRelu ? CUBLASLT_EPILOGUE_RELU : CUBLASLT_EPILOGUE_DEFAULT);
  set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  if (bias) {
    const void* address = bias.raw();
    set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, address);
    plan.bias_type = bias.dtype();
    set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(bias));
  }
  // The library fills its memory before it multiplies: a launch more, of which nothing can begin
  // early. What makes enough tiles for all multiprocessors needs none.
  const bool many = c.numel() >= device_info().sm_count * int64_t(kTile) * kTile;
  const auto found = [&] {
    return (many && choose(plan, aligned, 0)) || choose(plan, aligned, kMostWorkspace);
  };
  bool chosen = found();
  if (!chosen && bias && bias.dtype() != c.dtype()) {
    plan.bias_type = c.dtype();
    set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(c));
    chosen = found();
  }
  if (!chosen) fail(Exit::kDevice, "cuBLASLt has no algorithm for ", describe(a, w, c));
  return plans.emplace(key, plan).first->second;
}

Tensor with_contiguous_axis(const Tensor& t) {
  return lies(t, 2, 1) || lies(t, 1, 2) ? t : t.contiguous();
}

}  // namespace

bool find_blas(std::string& text) {
  const LibraryFile file = find_library(library_name());
  text = cat(library_name(), " is ", file.text);
  if (!file.handle) return false;
  const auto version =
      reinterpret_cast<decltype(&cublasLtGetVersion)>(dlsym(file.handle, "cublasLtGetVersion"));
  text = cat("cuBLASLt ", version ? version() : 0, ", ", file.text);
  return true;
}

void open_blas() {
  if (g_lt.handle) return;
  void* library = open_library();
  const auto load = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    if (!function) fail(Exit::kDevice, library_name(), " has no function ", name);
  };
  load(g_lt.create, "cublasLtCreate");
  load(g_lt.status_string, "cublasLtGetStatusString");
  load(g_lt.matmul, "cublasLtMatmul");
  load(g_lt.desc_create, "cublasLtMatmulDescCreate");
  load(g_lt.desc_destroy, "cublasLtMatmulDescDestroy");
  load(g_lt.desc_set, "cublasLtMatmulDescSetAttribute");
  load(g_lt.layout_create, "cublasLtMatrixLayoutCreate");
  load(g_lt.layout_destroy, "cublasLtMatrixLayoutDestroy");
  load(g_lt.layout_set, "cublasLtMatrixLayoutSetAttribute");
  load(g_lt.preference_create, "cublasLtMatmulPreferenceCreate");
  load(g_lt.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  load(g_lt.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  load(g_lt.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  check_lt(g_lt.create(&g_lt.handle), "cublasLtCreate");
}

bool product(const Tensor& a, const Tensor& w, const Tensor& bias, Activation act,
             const Tensor& base, const Tensor& c) {
  // cuBLASLt's matrices are column-major: it computes c^T = w^T a^T.
  if (!lies(c, 2, 1)) {
    check(lies(c, 1, 2), "matrix product into strides ", c.strides());
    if (bias) return false;
    return product(w.transpose(1, 2), a.transpose(1, 2), {}, act,
                   base ? base.transpose(1, 2) : base, c.transpose(1, 2));
  }
  if (base && base.raw() != c.raw() && !lies(base, 2, 1)) {
    c.copy_from(base);
    return product(a, w, bias, act, c, c);
  }
  const Tensor x = with_contiguous_axis(w), y = with_contiguous_axis(a);
  const cudaStream_t s = stream();
  const Plan& plan = plan_for(y, x, bias, act, base, c);
  const float one = 1, beta = base ? 1 : 0;
  const void* const old = base ? base.raw() : c.raw();
  const Scratch workspace(int64_t(plan.workspace));
  Tensor b = bias ? bias.to(plan.bias_type) : bias;
  if (b && alignment(b.raw()) < 16) b = b.clone();
  cublasLtMatmulDescOpaque_t desc = *plan.desc;  // other threads have other addresses
  if (b) {
    const void* address = b.raw();
    set(&desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, address);
  }
  if (Recorder* const recorder = Recorder::current()) {
    if (!recorder->fixed(
            {&plan, x.raw(), y.raw(), b ? b.raw() : nullptr, old, c.raw(), workspace.data<void>()}))
      return true;
  } else {
    count_launch();
  }
  check_lt(
      g_lt.matmul(g_lt.handle, &desc, &one, x.raw(), plan.a, y.raw(), plan.b, &beta, old, plan.base,
                  c.raw(), plan.c, &plan.algo, workspace.data<void>(), plan.workspace, s),
      "cublasLtMatmul", describe(a, w, c));
  return true;
}

}  // namespace ff::cuda
