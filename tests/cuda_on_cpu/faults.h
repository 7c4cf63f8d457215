/* Faults of a kernel as failures of the running thread: what would end the process ends the launch.
 *
 * (a) The handler has a stack of its own, for a thread that has overflowed its stack has none.
 * (b) It never returns: stop() switches to the host's fiber, from there as from anywhere.
 * (c) Handlers, such as Python's faulthandler, are put back when the launch is over.
 */
#pragma once
#include "launch.h"
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

/* Behind the instruction that failed, as a return address would be. */
inline void *fault_pc(void *context) {
#if defined(__x86_64__)
    return (char *)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] + 1;
#elif defined(__aarch64__)
    return (char *)((ucontext_t *)context)->uc_mcontext.pc + 1;
#else
    (void)context;
    return nullptr;
#endif
}

inline void on_fault(int signal, siginfo_t *info, void *context) {
    if (!running.stack_low) {                        /* no kernel's: it happens again, unhandled */
        ::signal(signal, SIG_DFL);
        return;
    }
    void *pc = fault_pc(context);
    const char *at = (const char *)info->si_addr, *guard = running.stack_low - sysconf(_SC_PAGESIZE);
    if (signal == SIGFPE) stop("division of integers by zero", pc);
    if (at >= guard && at < running.stack_low) stop("overflow of a thread's stack", pc);
    stop("memcheck: access outside every buffer", pc, {}, at);
}

class Faults {
    static constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE};
    struct sigaction before[3];
    stack_t stack_before;
    char stack[64 << 10];

public:
    Faults() {
        stack_t own = {};
        own.ss_sp = stack;
        own.ss_size = sizeof stack;
        sigaltstack(&own, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &action, &before[i]);
    }
    ~Faults() {
        for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &before[i], nullptr);
        sigaltstack(&stack_before, nullptr);
    }
};
