// Where a fiber goes on, and the switch to there. swapcontext serves too, but its system calls for the signal mask take
// three times as long as the kernels that run on fibers.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define FASTRNN_FIBERS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FASTRNN_FIBERS_ASAN 1
#endif
#endif
#ifdef FASTRNN_FIBERS_ASAN
#include <sanitizer/asan_interface.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace fastrnn::host {

class Context {
 public:
  // The first switch to it begins `entry`, which must not return, on `bytes` of stack, a multiple of 16 aligned to 16.
  void begin(char* stack, size_t bytes, void (*entry)()) {
#ifdef FASTRNN_FIBERS_ASAN
    ASAN_UNPOISON_MEMORY_REGION(stack, bytes);  // the frames of who had it before never ended
#endif
#ifdef __x86_64__
    top_ = reinterpret_cast<void**>(stack + bytes);
    *--top_ = nullptr;  // where `entry` would return to
    *--top_ = reinterpret_cast<void*>(entry);
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  // Goes on at `to`, and here when somebody switches back.
  void switch_to(Context& to) {
#ifdef __x86_64__
    // The stack's pointer changes hands. What the compiler has in registers it saves itself, except for the frame's; up
    // to 128 bytes below the pointer may be in use.
    void*** here = &top_;
    void** there = to.top_;
    asm volatile(
        "lea -128(%%rsp), %%rsp\n\t"
        "push %%rbp\n\t"
        "lea 1f(%%rip), %%rax\n\t"
        "push %%rax\n\t"
        "mov %%rsp, (%0)\n\t"
        "mov %1, %%rsp\n\t"
        "pop %%rax\n\t"
        "jmp *%%rax\n"
        "1:\n\t"
        "pop %%rbp\n\t"
        "lea 128(%%rsp), %%rsp"
        : "+D"(here), "+S"(there)
        :
        : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2",
          "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
          "cc", "memory");
#else
    swapcontext(&context_, &to.context_);
#endif
  }

 private:
#ifdef __x86_64__
  void** top_ = nullptr;  // of its stack: the address to go on at, then what that code left there
#else
  ucontext_t context_;
#endif
};

}  // namespace fastrnn::host
