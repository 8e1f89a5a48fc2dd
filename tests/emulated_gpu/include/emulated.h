// Kernels on the CPU: the threads of a block are fibers that take turns at barriers, and blocks run
// one after another. tests/emulated_gpu/rewrite turns shared memory and inline PTX into calls of
// these.
#pragma once

#include <string>
#include <vector>

namespace ff::emulated {

/// Of the next launch's kernel, for messages.
void name(const char* kernel);
void run(dim3 grid, dim3 block, size_t shared, void (*thread)(void*), void* of);
/// This thread waits for earlier launches, as all do before they end.
void wait_for_earlier();

/// Waits for `count` threads, or for all that have not ended where it is 0, at barrier `id`; goes
/// on at once where it only arrives.
void barrier(int id, int count, bool waits);
/// Waits for the lanes of the mask that have not ended; `all` is called once with what each has
/// given, nullptr for a lane that does not take part.
void meet(unsigned mask, const char* what, void* mine, void (*all)(void** lanes));
int lane();
int warp();
/// Ends the program with a message that names the kernel, block and thread.
[[noreturn]] void fail(const std::string& what);

void* dynamic_shared(size_t align);
/// A variable in shared memory.
class Room {
 public:
  template <class T>
  T& as(size_t align) {
    return *static_cast<T*>(place(sizeof(T), align));
  }

 private:
  void* place(size_t bytes, size_t align);
  void* at_ = nullptr;
  uint64_t block_ = 0;
};
uint32_t shared_address(const void* p);
void* shared_pointer(uint64_t address);

/// What a thread has begun and not waited for: copies, and products of the matrix unit.
struct Copy {
  void* to;
  const void* from;
  size_t bytes, room;
};
struct Product {
  const struct Instruction* how;
  float* d[128];  ///< by their order in the instruction
  uint32_t a[4];
  uint64_t a_tile, b_tile;
  bool adds;
};
template <class T>
using Groups = std::vector<std::vector<T>>;  ///< the last is not committed yet
Groups<Copy>& copies();
Groups<Product>& products();

/// An operand of inline PTX: a variable, or a value.
struct Operand {
  void* variable;
  uint64_t value;
  template <class T>
  T get() const {
    T x;
    std::memcpy(&x, variable ? variable : &value, sizeof x);
    return x;
  }
};
template <class T>
Operand out(T& x) {
  return {&x, 0};
}
template <class T>
Operand in(const T& x) {
  Operand o{nullptr, 0};
  std::memcpy(&o.value, &x, sizeof x);
  return o;
}

/// Of an instruction: operand %n, a number, or p; several where it stands in braces.
struct Word {
  int operand;  ///< -1: `number`; -2: the predicate
  int64_t number;
};
struct Instruction {
  std::string name;
  std::vector<std::vector<Word>> words;
  void (*run)(const Instruction&, Operand*);
  bool has(const char* part) const { return name.find(part) != std::string::npos; }
  template <class T>
  T get(const Operand* o, size_t word, size_t i = 0) const;
};
/// The text of an asm statement.
class Ptx {
 public:
  explicit Ptx(const char* text);
  void run(Operand* o) const {
    for (const Instruction& i : instructions_) i.run(i, o);
  }

 private:
  std::vector<Instruction> instructions_;
};

}  // namespace ff::emulated
