/* SPDX-License-Identifier: Apache-2.0 */
/*
 * getaddrinfo() blocks for as long as a name server likes and cannot be interrupted. A lookup therefore runs
 * on a thread of its own and is shared between that thread and the waiting coroutine: whoever leaves last
 * frees it, so that a coroutine that is cancelled (the daemon ends) does not wait for the name server.
 * Numeric addresses take no thread.
 */
#include "net/resolve.h"

#include "base/log.h"
#include "base/mem.h"
#include "generated/types.h"
#include "loop/loop.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct Lookup {
    atomic_uint refs;
    int done_fd;       /* readable once result is valid */
    char *host, *port; /* NULL: any */
    struct addrinfo hints, *found;
    int result; /* of getaddrinfo(); for EAI_SYSTEM error holds errno */
    int error;
} Lookup;

static void lookup_unref(Lookup *lookup)
{
    if (atomic_fetch_sub(&lookup->refs, 1) != 1)
        return;
    if (lookup->found)
        freeaddrinfo(lookup->found);
    fd_close(lookup->done_fd);
    free(lookup->host);
    free(lookup->port);
    free(lookup);
}

static void lookup_unref_ptr(Lookup **lookup)
{
    if (*lookup)
        lookup_unref(*lookup);
}

static void lookup_run(Lookup *lookup)
{
    lookup->result = getaddrinfo(lookup->host, lookup->port, &lookup->hints, &lookup->found);
    lookup->error = errno;
}

static void *lookup_thread(void *arg)
{
    Lookup *lookup = arg;
    uint64_t one = 1;

    lookup_run(lookup);
    if (write(lookup->done_fd, &one, sizeof(one)) < 0)
        log_error("address resolution cannot report its end: %m");
    lookup_unref(lookup);
    return NULL;
}

static int start_thread(Lookup *lookup)
{
    pthread_attr_t attr;
    pthread_t thread;
    int r;

    lookup->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (lookup->done_fd < 0)
        return -errno;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    atomic_fetch_add(&lookup->refs, 1);
    r = -pthread_create(&thread, &attr, lookup_thread, lookup);
    pthread_attr_destroy(&attr);
    if (r < 0)
        lookup_unref(lookup);
    return r;
}

/* True when the host needs no look-up: an address, or none. */
static bool try_numeric(Lookup *lookup)
{
    int flags = lookup->hints.ai_flags;

    lookup->hints.ai_flags |= AI_NUMERICHOST | AI_NUMERICSERV;
    lookup_run(lookup);
    lookup->hints.ai_flags = flags;
    if (lookup->result == 0)
        return true;
    lookup->found = NULL;
    return (flags & AI_NUMERICHOST) != 0;
}

/* The family that the address's ipv4 and ipv6 members leave; -EINVAL when none. */
static int choose_family(const InetSocketAddress *address)
{
    bool want4 = address->has_ipv4 && address->ipv4, want6 = address->has_ipv6 && address->ipv6;
    bool no4 = address->has_ipv4 && !address->ipv4, no6 = address->has_ipv6 && !address->ipv6;

    if (no4 && no6)
        return -EINVAL;
    if (want4 && want6)
        return AF_UNSPEC;
    if (want6 || no4)
        return AF_INET6;
    return want4 || no6 ? AF_INET : AF_UNSPEC;
}

static Lookup *lookup_new(const InetSocketAddress *address, bool passive, int family)
{
    Lookup *lookup = mem_new(Lookup);

    atomic_init(&lookup->refs, 1);
    lookup->done_fd = -1;
    /* A server without a host listens everywhere; a client without one is a mistake, which getaddrinfo()
     * reports. */
    lookup->host = passive && !*address->host ? NULL : str_dup(address->host);
    lookup->port = *address->port ? str_dup(address->port) : passive && lookup->host ? NULL : str_dup("0");
    lookup->hints = (struct addrinfo){.ai_family = family, .ai_socktype = SOCK_STREAM};
    lookup->hints.ai_flags = passive ? AI_PASSIVE : AI_V4MAPPED | AI_ADDRCONFIG;
    if (address->has_numeric && address->numeric)
        lookup->hints.ai_flags |= AI_NUMERICHOST | AI_NUMERICSERV;
    return lookup;
}

int resolve_inet(const InetSocketAddress *address, bool passive, struct addrinfo **ret_list, Error *err)
{
    CLEANUP(lookup_unref_ptr) Lookup *lookup = NULL;
    int family = choose_family(address), r;
    uint64_t ends;

    if (family < 0)
        return err_set(err, family, "Cannot disable IPv4 and IPv6 at same time");
    lookup = lookup_new(address, passive, family);
    if (!try_numeric(lookup)) {
        r = start_thread(lookup);
        r = r < 0 ? r : (int)io_read(lookup->done_fd, &ends, sizeof(ends));
        if (r < 0)
            return err_set_errno(err, r, "address resolution failed for %s:%s", address->host, address->port);
    }
    if (lookup->result == EAI_SYSTEM)
        return err_set_errno(
            err, -lookup->error, "address resolution failed for %s:%s", address->host, address->port);
    if (lookup->result)
        return err_set(err, -EINVAL, "address resolution failed for %s:%s: %s", address->host, address->port,
            gai_strerror(lookup->result));
    *ret_list = TAKE(lookup->found);
    return 0;
}
