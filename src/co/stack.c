/* SPDX-License-Identifier: Apache-2.0 */
/* Coroutine stacks: a mapping with a guard page below and the Co at its top, known to valgrind and the
 * sanitizers. */
#include "co/co-priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#if CO_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#else
#define VALGRIND_STACK_REGISTER(start, end) 0
#define VALGRIND_STACK_DEREGISTER(id) ((void)(id))
#endif

/*
 * Only touched pages cost memory, so there is room for the deepest recursion: opening and reading a chain of
 * LIMIT_CHAIN_DEPTH backing files. Sanitized code uses far more stack.
 */
#define STACK_BYTES (CO_ASAN || CO_TSAN ? 4 * MIB : 1 * MIB)

Co *co_stack_new(void (*entry)(Co *co))
{
    size_t guard = (size_t)sysconf(_SC_PAGESIZE), size = guard + STACK_BYTES;
    char *mapping =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    Co *co;

    if (mapping == MAP_FAILED || mprotect(mapping, guard, PROT_NONE) < 0) {
        perror("granary: cannot allocate a coroutine stack");
        abort();
    }
    co = (Co *)(((uintptr_t)mapping + size - sizeof(*co)) & ~(uintptr_t)63);
    co->mapping = mapping;
    co->mapping_size = size;
    co->context.stack_bottom = mapping + guard;
    co->context.stack_size = (size_t)((char *)co - (mapping + guard));
    co->valgrind_id = VALGRIND_STACK_REGISTER(mapping + guard, (char *)co);
#if CO_TSAN
    co->context.tsan_fiber = __tsan_create_fiber(0);
#endif
    co_context_make(&co->context, co, (void (*)(void *))entry, co);
    return co;
}

void co_stack_free(Co *co)
{
    VALGRIND_STACK_DEREGISTER(co->valgrind_id);
#if CO_TSAN
    __tsan_destroy_fiber(co->context.tsan_fiber);
#endif
    munmap(co->mapping, co->mapping_size);
}
