/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of co/ share: the coroutine, its stack, the context switch. */
#pragma once

#include "co/co.h"

#if defined(__SANITIZE_ADDRESS__)
#define CO_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CO_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define CO_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CO_TSAN 1
#endif
#endif
#ifndef CO_ASAN
#define CO_ASAN 0
#endif
#ifndef CO_TSAN
#define CO_TSAN 0
#endif

/* A suspended flow of control. */
typedef struct CoContext {
    void *stack_pointer;
    void *asan_fake_stack;
    void *tsan_fiber;
    const void *stack_bottom; /* for the sanitizers */
    size_t stack_size;
} CoContext;

struct Co {
    CoContext context;
    CoSched *sched;
    List ready_link; /* on CoSched.ready or .running while it is to run */
    List all_link;   /* on CoSched.all while it lives, on CoSched.pool while it does not */
    List group_link;
    CoGroup *group;
    const char *name;
    void (*fn)(void *arg);
    void *arg;

    CoWait *wait; /* what it is suspended for */
    bool queued;  /* on a run list */
    bool interruptible;
    bool cancelled;
    unsigned shield_depth;
    CoDeadline *deadlines; /* innermost first */

    void *mapping; /* the stack, guard page included */
    size_t mapping_size;
    unsigned valgrind_id;
};

/* Allocates a stack whose top holds the Co; entry(co) runs at the first switch to it. Ends the process when
 * out of memory. */
Co *co_stack_new(void (*entry)(Co *co));
void co_stack_free(Co *co);

/* Leaves `from` and continues `to`. */
void co_context_switch(CoContext *from, CoContext *to);
/* First thing to call in a context that was just entered by a switch from `previous`. */
void co_context_entered(CoContext *self);
/* Prepares a fresh stack so that a switch to it calls entry(arg). */
void co_context_make(CoContext *context, void *stack_top, void (*entry)(void *arg), void *arg);
