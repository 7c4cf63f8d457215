/* Fibers: threads of control in one system thread that hand each other the floor.
 *
 * (a) On x86-64 a switch saves the six registers that a call must preserve: some nanoseconds, where
 *     swapcontext asks the system about signals each time, 450 ns.  Elsewhere it is swapcontext.
 * (b) A stack lies above a page that may not be touched: overflow is a fault, not a corrupted
 *     neighbor.  Stacks are never given back; a launch takes them from those of the one before.
 * (c) Tops of stacks are staggered: at equal distances from a page's start they would share the
 *     same few sets of the cache.
 */
#pragma once
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#if !defined(__x86_64__) || defined(PORTABLE_FIBERS)
#define UCONTEXT
#include <ucontext.h>
#endif

struct Fiber {
    char *low = nullptr, *high = nullptr;            /* its stack; the host's is the system's */
#if !defined(UCONTEXT)
    void *saved = nullptr;
#else
    ucontext_t saved;
#endif
};

constexpr size_t STACK = 64 << 10;

inline void map_stack(Fiber &f) {
    static size_t made, page = sysconf(_SC_PAGESIZE);
    void *base = mmap(nullptr, page + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base, page, PROT_NONE)) abort();
    f.low = (char *)base + page;
    f.high = f.low + STACK - made++ % 16 * 256;
}

#if !defined(UCONTEXT)

extern "C" void fiber_switch(void **saved, void *to);
asm(".text\n"
    ".hidden fiber_switch\n.globl fiber_switch\n.type fiber_switch, @function\n"
    "fiber_switch:\n"
    "    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
    "    mov %rsp, (%rdi); mov %rsi, %rsp\n"
    "    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp\n"
    "    ret\n"
    ".size fiber_switch, . - fiber_switch\n");

inline void switch_fiber(Fiber &from, Fiber &to) { fiber_switch(&from.saved, to.saved); }

/* The next switch to f calls body, which must not return. */
inline void start_fiber(Fiber &f, void (*body)()) {
    void **top = (void **)f.high;
    *--top = nullptr;                                /* body's return address: the stack is aligned as after a call */
    *--top = (void *)body;
    f.saved = top - 6;
}

#else

inline void switch_fiber(Fiber &from, Fiber &to) { swapcontext(&from.saved, &to.saved); }

inline void start_fiber(Fiber &f, void (*body)()) {
    getcontext(&f.saved);
    f.saved.uc_stack.ss_sp = f.low;
    f.saved.uc_stack.ss_size = f.high - f.low;
    f.saved.uc_link = nullptr;
    makecontext(&f.saved, body, 0);
}

#endif
