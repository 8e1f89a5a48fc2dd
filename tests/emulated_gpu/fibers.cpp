// Runs kernels on the CPU: a launch's blocks one after another, the threads of a block as fibers.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <utility>

#include "cuda_runtime_api.h"
#include "runtime.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n)
#define ASAN_UNPOISON_MEMORY_REGION(p, n)
#endif
#ifdef FF_RACES
// The thread sanitizer takes fibers for threads and finds what no barrier orders. This file itself
// is compiled without it.
#include <sanitizer/tsan_interface.h>
#else
#define __tsan_acquire(p)
#define __tsan_release(p)
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Keeps the registers that a called function must keep, and goes on where `to` left off.
extern "C" void ff_switch_stack(void** from, void* to);
asm(R"(
.text
.type ff_switch_stack, @function
ff_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ff_switch_stack, . - ff_switch_stack
)");

namespace ff::emulated {
namespace {

constexpr size_t kStack = 256 << 10, kPage = 4096, kShared = 256 << 10, kFirst = 1024;
constexpr size_t kGap = 64;  // between variables in shared memory

struct Fiber {
  void* stack_pointer = nullptr;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;
  uint3 index;
  int number = 0;
  bool waited = false;      // for earlier launches
  void* context = nullptr;  // the thread sanitizer's
  Groups<Copy> copies = Groups<Copy>(1);
  Groups<Product> products = Groups<Product>(1);
};

struct Meeting {
  unsigned mask, here = 0;
  const char* what = "";
  void* given[32] = {};
  void (*all)(void**) = nullptr;
  char before, after;  // stand for what is ordered by it
};
struct Warp {
  unsigned lives = 0;
  std::deque<Meeting> meetings;
};
struct Barrier {
  int here = 0, count = 0;
  bool odd = false;
  char even_passes, odd_passes;  // stand for what is ordered by it
  std::vector<Fiber*> waiting;
};

/// The order in which threads that can go on do so.
enum class Order { kFirstFirst, kLastFirst, kRandom };

struct Block {
  void (*thread)(void*);
  void* of;
  std::vector<Fiber> fibers;
  Fiber main, *current = nullptr;
  int threads = 0, lives = 0;
  std::vector<Warp> warps{32};
  Barrier barriers[16];
  Fiber* ready[1024];  // a ring
  unsigned next = 0, waiting = 0;
  uint64_t serial = 0;
  Order order = Order::kFirstFirst;
  uint64_t random = 0;
  unsigned char* shared = nullptr;
  size_t dynamic_bytes = 0, used = 0;
};
Block& g = *new Block;
std::mutex g_mutex;
thread_local const char* t_kernel = "";

void begin_switch(Fiber& from, const Fiber& to) {
#ifdef FF_RACES
  __tsan_switch_to_fiber(to.context, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
  (void)from, (void)to;
}
void end_switch(Fiber& here) {
#ifdef __SANITIZE_ADDRESS__
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(here.fake_stack, &stack, &bytes);
  if (!g.main.stack) g.main.stack = stack, g.main.stack_bytes = bytes;
#endif
  (void)here;
}

void switch_to(Fiber& to) {
  Fiber& from = *g.current;
  if (&from == &to) return;
  g.current = &to;
  threadIdx = to.index;
  begin_switch(from, to);
  ff_switch_stack(&from.stack_pointer, to.stack_pointer);
  end_switch(from);
}

Fiber*& ready(unsigned i) { return g.ready[(g.next + i) % 1024]; }

void wake(Fiber& f) { ready(g.waiting++) = &f; }

void report_waiting() {
  for (int b = 0; b < 16; ++b)
    if (!g.barriers[b].waiting.empty())
      std::fprintf(stderr, "  barrier %d: %d of %d threads\n", b, g.barriers[b].here,
                   g.barriers[b].count ? g.barriers[b].count : g.lives);
  for (size_t w = 0; w < g.warps.size(); ++w)
    for (const Meeting& m : g.warps[w].meetings)
      if (m.here)
        std::fprintf(stderr, "  warp %zu: lanes %08x of %08x at %s\n", w, m.here,
                     m.mask & g.warps[w].lives, m.what);
}

/// Lets another thread go on until this one is woken.
void rest() {
  if (!g.waiting) {
    if (!g.lives) return switch_to(g.main);
    report_waiting();
    fail("no thread can go on");
  }
  --g.waiting;
  if (g.order == Order::kLastFirst) return switch_to(*ready(g.waiting));
  if (g.order == Order::kRandom) {
    g.random = g.random * 6364136223846793005u + 1442695040888963407u;
    std::swap(ready(0), ready(unsigned(g.random >> 33) % (g.waiting + 1)));
  }
  switch_to(*g.ready[g.next++ % 1024]);
}

/// Ends a meeting, if all lanes are there.
bool met(Warp& warp, Meeting& m, const Fiber* last) {
  if (!m.here || m.here != (m.mask & warp.lives)) return false;
  __tsan_acquire(&m.before);
  m.all(m.given);
  __tsan_release(&m.after);
  const int first = int(&warp - g.warps.data()) * 32;
  for (int lane = 0; lane < 32; ++lane)
    if (m.here >> lane & 1 && &g.fibers[size_t(first + lane)] != last)
      wake(g.fibers[size_t(first + lane)]);
  m.here = 0;
  std::fill(m.given, m.given + 32, nullptr);
  return true;
}

bool passed(Barrier& b) {
  if (!b.here || b.here != (b.count ? b.count : g.lives)) return false;
  b.here = 0;
  b.odd = !b.odd;
  for (Fiber* f : b.waiting) wake(*f);
  b.waiting.clear();
  return true;
}

/// What a fiber runs, once for each block.
void fiber_main() {
  end_switch(*g.current);
  for (;;) {
    __tsan_acquire(&g);
    g.thread(g.of);
    __tsan_release(&g);
    Fiber& me = *g.current;
    if (!std::exchange(me.waited, false)) fail("ended without after_earlier()");
    if (me.products.size() > 1 || !me.products[0].empty())
      fail("ended with products that it did not wait for");
    me.copies.resize(1);
    me.copies[0].clear();
    --g.lives;
    Warp& warp = g.warps[size_t(me.number / 32)];
    warp.lives &= ~(1u << me.number % 32);
    for (Meeting& m : warp.meetings) met(warp, m, nullptr);
    for (Barrier& b : g.barriers)
      if (!b.count) passed(b);
    rest();
  }
}

void* new_memory(size_t bytes, int flags) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
  if (p != MAP_FAILED) return p;
  std::perror("emulated GPU: mmap");
  std::abort();
}

void prepare() {
  if (g.shared) return;
  // Addresses of shared memory have 32 bits, and 18 in the matrix unit's descriptors.
  const auto at = reinterpret_cast<uintptr_t>(new_memory(2 * kShared, MAP_32BIT));
  g.shared = reinterpret_cast<unsigned char*>((at + kShared - 1) & ~(kShared - 1));
  ASAN_POISON_MEMORY_REGION(g.shared, kShared);
  g.fibers.resize(1024);
  for (Barrier& b : g.barriers) b.waiting.reserve(1024);
  auto* stacks = static_cast<char*>(new_memory(1024 * (kStack + kPage), 0));
  for (size_t i = 0; i < 1024; ++i) {
    Fiber& f = g.fibers[i];
    char* const stack = stacks + i * (kStack + kPage);
    mprotect(stack, kPage, PROT_NONE);
    f.stack = stack + kPage;
    f.stack_bytes = kStack;
    f.number = int(i);
#ifdef FF_RACES
    f.context = __tsan_create_fiber(0);
    __tsan_set_fiber_name(f.context, ("GPU thread " + std::to_string(i)).c_str());
#endif
    auto** top = reinterpret_cast<void**>(stack + kPage + kStack) - 2;
    top[0] = reinterpret_cast<void*>(fiber_main);
    f.stack_pointer = top - 6;
  }
  if (const char* order = std::getenv("FASTFOLD_EMULATED_ORDER")) {
    g.order = *order == 'l'   ? Order::kLastFirst
              : *order == 'f' ? Order::kFirstFirst
                              : Order::kRandom;
    g.random = std::strtoull(order, nullptr, 10);
  }
}

/// NaN in memory that holds nothing yet; memset would be a write that the thread sanitizer sees.
void spoil(void* to, size_t bytes) {
  asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(0xff) : "memory");
}

void run_block() {
  ++g.serial;
  ASAN_POISON_MEMORY_REGION(g.shared, kShared);
  ASAN_UNPOISON_MEMORY_REGION(g.shared + kFirst, g.dynamic_bytes);
  spoil(g.shared + kFirst, g.dynamic_bytes);
  g.used = g.dynamic_bytes;
  g.lives = g.threads;
  for (Warp& w : g.warps) w.lives = 0;
  for (int i = 0; i < g.threads; ++i) {
    Fiber& f = g.fibers[size_t(i)];
    const unsigned n = unsigned(i), x = blockDim.x, y = blockDim.y;
    f.index = {n % x, n / x % y, n / x / y};
    g.warps[size_t(i / 32)].lives |= 1u << i % 32;
    wake(f);
  }
  g.current = &g.main;
  __tsan_release(&g);
  rest();
  __tsan_acquire(&g);
  for (int b = 0; b < 16; ++b)
    if (g.barriers[b].here) fail("a barrier was arrived at that nobody waited for");
}

}  // namespace

void name(const char* kernel) { t_kernel = kernel; }
void wait_for_earlier() { g.current->waited = true; }

void run(dim3 m, dim3 n, size_t shared, void (*thread)(void*), void* of) {
  const std::lock_guard lock(g_mutex);
  prepare();
  const uint64_t threads = uint64_t(n.x) * n.y * n.z;
  if (!threads || threads > 1024 || n.z > 64 || !m.x || !m.y || !m.z || m.x > INT32_MAX ||
      m.y > 65535 || m.z > 65535)
    return set_last_error(cudaErrorInvalidConfiguration);
  if (shared > shared_bytes()) return set_last_error(cudaErrorInvalidValue);
  g.thread = thread;
  g.of = of;
  g.threads = int(threads);
  g.dynamic_bytes = shared;
  g.main.stack = nullptr;
#ifdef FF_RACES
  g.main.context = __tsan_get_current_fiber();
#endif
  blockDim = n;
  gridDim = m;
  for (unsigned z = 0; z < m.z; ++z)
    for (unsigned y = 0; y < m.y; ++y)
      for (unsigned x = 0; x < m.x; ++x) {
        blockIdx = {x, y, z};
        run_block();
      }
}

void barrier(int id, int count, bool waits) {
  Barrier& b = g.barriers[id & 15];
  if (b.here && b.count != count)
    fail("threads wait for different counts at barrier " + std::to_string(id));
  if (count % 32)
    fail("a barrier's count is " + std::to_string(count) + ", which is not whole warps");
  b.count = count;
  ++b.here;
  [[maybe_unused]] char* const order = b.odd ? &b.odd_passes : &b.even_passes;
  __tsan_release(order);
  if (!passed(b)) {
    if (!waits) return;
    b.waiting.push_back(g.current);
    rest();
  }
  __tsan_acquire(order);
}

void meet(unsigned mask, const char* what, void* mine, void (*all)(void**)) {
  Fiber& me = *g.current;
  Warp& warp = g.warps[size_t(me.number / 32)];
  const int lane = me.number % 32;
  if (!(mask >> lane & 1)) fail(std::string(what) + ": the mask is without the calling lane");
  auto m = std::find_if(warp.meetings.begin(), warp.meetings.end(),
                        [&](const Meeting& x) { return x.mask == mask; });
  if (m == warp.meetings.end()) {
    warp.meetings.push_back(Meeting{mask});
    m = warp.meetings.end() - 1;
  }
  if (m->here && m->all != all)
    fail(std::string(what) + ", while other lanes of the warp are at " + m->what);
  static char none;
  m->what = what;
  m->all = all;
  m->given[lane] = mine ? mine : &none;
  m->here |= 1u << lane;
  __tsan_release(&m->before);
  [[maybe_unused]] char* const after = &m->after;
  if (!met(warp, *m, &me)) rest();
  __tsan_acquire(after);
}

int lane() { return g.current->number % 32; }
int warp() { return g.current->number / 32; }

void fail(const std::string& what) {
  const Fiber& me = *g.current;
  std::fprintf(stderr,
               "emulated GPU: %s: block (%u, %u, %u), thread (%u, %u, %u) of (%u, %u, %u): %s\n",
               t_kernel, blockIdx.x, blockIdx.y, blockIdx.z, me.index.x, me.index.y, me.index.z,
               blockDim.x, blockDim.y, blockDim.z, what.c_str());
  std::abort();
}

void* dynamic_shared(size_t align) {
  if (align > kFirst)
    fail("shared memory begins at a multiple of 1,024 bytes, not " + std::to_string(align));
  return g.shared + kFirst;
}

void* Room::place(size_t bytes, size_t align) {
  if (block_ == g.serial) return at_;
  block_ = g.serial;
  const size_t at = (kFirst + g.used + kGap + align - 1) / align * align;
  g.used = at + bytes - kFirst;
  if (at + bytes > kShared) fail("more shared memory than there is");
  at_ = g.shared + at;
  ASAN_UNPOISON_MEMORY_REGION(at_, bytes);
  spoil(at_, bytes);
  return at_;
}

uint32_t shared_address(const void* p) {
  if (p < g.shared || p >= g.shared + kShared) fail("an address is not in shared memory");
  return uint32_t(reinterpret_cast<uintptr_t>(p));
}

void* shared_pointer(uint64_t address) {
  // A descriptor has the lowest 18 bits.
  unsigned char* const p = g.shared + (address & (kShared - 1));
  return p;
}

Groups<Copy>& copies() { return g.current->copies; }
Groups<Product>& products() { return g.current->products; }

}  // namespace ff::emulated
