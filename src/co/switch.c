/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The context switch: callee-saved registers of the platform's C calling convention are pushed on the old
 * stack and popped from the new one. Where there is no assembly below, ucontext does the same, slower. The
 * sanitizers are told about each switch.
 */
#include "co/co-priv.h"

#include <stdlib.h>
#include <string.h>

#if CO_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#if CO_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#if defined(__x86_64__) && !defined(CO_FORCE_UCONTEXT)

/* rdi: where to store the old stack pointer; rsi: the new stack pointer. */
__asm__(".text\n"
        ".p2align 4\n"
        ".hidden co_switch_stacks\n"
        ".globl co_switch_stacks\n"
        ".type co_switch_stacks,@function\n"
        "co_switch_stacks:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    retq\n"
        ".size co_switch_stacks,.-co_switch_stacks\n"
        ".hidden co_first_entry\n"
        ".globl co_first_entry\n"
        ".type co_first_entry,@function\n"
        "co_first_entry:\n"
        "    movq %r12, %rdi\n"
        "    xorl %ebp, %ebp\n"
        "    callq *%r13\n"
        "    ud2\n"
        ".size co_first_entry,.-co_first_entry\n");

void co_switch_stacks(void **save, void *load);
void co_first_entry(void);

void co_context_make(CoContext *context, void *stack_top, void (*entry)(void *arg), void *arg)
{
    void **sp = (void **)((uintptr_t)stack_top & ~(uintptr_t)15);

    *--sp = NULL; /* keeps the stack 16-byte aligned at the call in co_first_entry */
    *--sp = NULL;
    *--sp = (void *)co_first_entry;
    *--sp = NULL;          /* rbp */
    *--sp = NULL;          /* rbx */
    *--sp = arg;           /* r12 */
    *--sp = (void *)entry; /* r13 */
    *--sp = NULL;          /* r14 */
    *--sp = NULL;          /* r15 */
    context->stack_pointer = sp;
}

#elif defined(__aarch64__) && !defined(CO_FORCE_UCONTEXT)

/* x0: where to store the old stack pointer; x1: the new stack pointer. */
__asm__(".text\n"
        ".p2align 4\n"
        ".hidden co_switch_stacks\n"
        ".globl co_switch_stacks\n"
        ".type co_switch_stacks,%function\n"
        "co_switch_stacks:\n"
        "    stp x29, x30, [sp, #-160]!\n"
        "    stp x19, x20, [sp, #16]\n"
        "    stp x21, x22, [sp, #32]\n"
        "    stp x23, x24, [sp, #48]\n"
        "    stp x25, x26, [sp, #64]\n"
        "    stp x27, x28, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x2, sp\n"
        "    str x2, [x0]\n"
        "    mov sp, x1\n"
        "    ldp x19, x20, [sp, #16]\n"
        "    ldp x21, x22, [sp, #32]\n"
        "    ldp x23, x24, [sp, #48]\n"
        "    ldp x25, x26, [sp, #64]\n"
        "    ldp x27, x28, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    ldp x29, x30, [sp], #160\n"
        "    ret\n"
        ".size co_switch_stacks,.-co_switch_stacks\n"
        ".hidden co_first_entry\n"
        ".globl co_first_entry\n"
        ".type co_first_entry,%function\n"
        "co_first_entry:\n"
        "    mov x0, x19\n"
        "    mov x29, xzr\n"
        "    blr x20\n"
        "    brk #0\n"
        ".size co_first_entry,.-co_first_entry\n");

void co_switch_stacks(void **save, void *load);
void co_first_entry(void);

void co_context_make(CoContext *context, void *stack_top, void (*entry)(void *arg), void *arg)
{
    uint64_t *frame = (uint64_t *)((uintptr_t)stack_top & ~(uintptr_t)15) - 20;

    memset(frame, 0, 160);
    frame[1] = (uint64_t)co_first_entry; /* x30 */
    frame[2] = (uint64_t)arg;            /* x19 */
    frame[3] = (uint64_t)entry;          /* x20 */
    context->stack_pointer = frame;
}

#else

#include <ucontext.h>

static void ucontext_entry(unsigned entry_high, unsigned entry_low, unsigned arg_high, unsigned arg_low)
{
    void (*entry)(void *) = (void (*)(void *))(uintptr_t)(((uint64_t)entry_high << 32) | entry_low);

    entry((void *)(uintptr_t)(((uint64_t)arg_high << 32) | arg_low));
}

static void co_switch_stacks(void **save, void *load)
{
    ucontext_t self;

    *save = &self;
    swapcontext(&self, load);
}

void co_context_make(CoContext *context, void *stack_top, void (*entry)(void *arg), void *arg)
{
    ucontext_t *u = (ucontext_t *)(((uintptr_t)stack_top - sizeof(ucontext_t)) & ~(uintptr_t)63);
    uint64_t e = (uintptr_t)entry, a = (uintptr_t)arg;

    getcontext(u);
    u->uc_stack.ss_sp = (void *)context->stack_bottom;
    u->uc_stack.ss_size = (size_t)((char *)u - (char *)context->stack_bottom);
    u->uc_link = NULL;
    makecontext(u, (void (*)(void))ucontext_entry, 4, (unsigned)(e >> 32), (unsigned)e, (unsigned)(a >> 32),
        (unsigned)a);
    context->stack_pointer = u;
}

#endif

void co_context_switch(CoContext *from, CoContext *to)
{
#if CO_ASAN
    __sanitizer_start_switch_fiber(&from->asan_fake_stack, to->stack_bottom, to->stack_size);
#endif
#if CO_TSAN
    __tsan_switch_to_fiber(to->tsan_fiber, 0);
#endif
    co_switch_stacks(&from->stack_pointer, to->stack_pointer);
    co_context_entered(from);
}

void co_context_entered(CoContext *self)
{
#if CO_ASAN
    __sanitizer_finish_switch_fiber(self->asan_fake_stack, NULL, NULL);
#else
    (void)self;
#endif
}
