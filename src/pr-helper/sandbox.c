/* SPDX-License-Identifier: Apache-2.0 */
#include "pr-helper/sandbox.h"

#include <seccomp.h>
#include <sys/mman.h>
#include <sys/socket.h>

static void filter_release(scmp_filter_ctx *filter)
{
    if (*filter)
        seccomp_release(*filter);
}

static int load(scmp_filter_ctx filter, int r, Error *err)
{
    if (r == 0)
        r = seccomp_load(filter);
    if (r < 0)
        return err_set_errno(err, r, "Cannot filter system calls (--no-sandbox does without)");
    return 0;
}

/* Adds the calls to the filter; what this machine's architecture does not have is left out. */
static int add(scmp_filter_ctx filter, uint32_t action, const int *calls, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        int r = seccomp_rule_add(filter, action, calls[i], 0);
        if (r < 0 && r != -EDOM)
            return r;
    }
    return 0;
}

/* For the system's log and the service manager. Not streams, which lead to services that trust user 0. */
static int add_datagram_socket(scmp_filter_ctx filter)
{
    const uint32_t type_mask = ~(uint32_t)(SOCK_CLOEXEC | SOCK_NONBLOCK);

    return seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2, SCMP_A0(SCMP_CMP_EQ, AF_UNIX),
        SCMP_A1(SCMP_CMP_MASKED_EQ, type_mask, SOCK_DGRAM));
}

int sandbox_enter_server(Error *err)
{
    static const int calls[] = {
        SCMP_SYS(accept4),
        SCMP_SYS(brk),
        SCMP_SYS(clock_gettime),
        SCMP_SYS(close),
        SCMP_SYS(connect), /* the system's log, when it was restarted */
        SCMP_SYS(epoll_ctl),
        SCMP_SYS(epoll_pwait),
        SCMP_SYS(epoll_wait),
        SCMP_SYS(exit),
        SCMP_SYS(exit_group),
        SCMP_SYS(fcntl),
        SCMP_SYS(fstat),
        SCMP_SYS(futex),
        SCMP_SYS(getpid),
        SCMP_SYS(getsockopt),
        SCMP_SYS(gettid),
        SCMP_SYS(gettimeofday),
        SCMP_SYS(lseek),
        SCMP_SYS(madvise),
        SCMP_SYS(mremap),
        SCMP_SYS(munmap),
        SCMP_SYS(newfstatat), /* fstat() of the C library */
        SCMP_SYS(poll),
        SCMP_SYS(ppoll),
        SCMP_SYS(read),
        SCMP_SYS(recvfrom),
        SCMP_SYS(recvmsg),
        SCMP_SYS(restart_syscall),
        SCMP_SYS(rt_sigaction),
        SCMP_SYS(rt_sigprocmask),
        SCMP_SYS(rt_sigreturn),
        SCMP_SYS(sendmsg),
        SCMP_SYS(sendto),
        SCMP_SYS(statx),
        SCMP_SYS(tgkill), /* abort() */
        SCMP_SYS(time),
        SCMP_SYS(write),
        SCMP_SYS(writev),
    };
    CLEANUP(filter_release) scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    int r;

    if (!filter)
        return err_set(err, -ENOMEM, "Cannot filter system calls");
    r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1); /* all threads */
    if (r == 0)
        r = add(filter, SCMP_ACT_ALLOW, calls, ARRAY_SIZE(calls));
    if (r == 0)
        r = add_datagram_socket(filter);
    if (r == 0)
        r = seccomp_rule_add(
            filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (r == 0)
        r = seccomp_rule_add(
            filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    return load(filter, r, err);
}

int sandbox_enter_keeper(Error *err)
{
    static const int calls[] = {
        SCMP_SYS(acct),
        SCMP_SYS(add_key),
        SCMP_SYS(adjtimex),
        SCMP_SYS(bpf),
        SCMP_SYS(chroot),
        SCMP_SYS(clock_adjtime),
        SCMP_SYS(clock_settime),
        SCMP_SYS(delete_module),
        SCMP_SYS(execve),
        SCMP_SYS(execveat),
        SCMP_SYS(finit_module),
        SCMP_SYS(fsconfig),
        SCMP_SYS(fsmount),
        SCMP_SYS(fsopen),
        SCMP_SYS(fspick),
        SCMP_SYS(init_module),
        SCMP_SYS(ioperm),
        SCMP_SYS(iopl),
        SCMP_SYS(kcmp),
        SCMP_SYS(kexec_file_load),
        SCMP_SYS(kexec_load),
        SCMP_SYS(keyctl),
        SCMP_SYS(mount),
        SCMP_SYS(mount_setattr),
        SCMP_SYS(move_mount),
        SCMP_SYS(open_by_handle_at),
        SCMP_SYS(open_tree),
        SCMP_SYS(perf_event_open),
        SCMP_SYS(pidfd_getfd),
        SCMP_SYS(pivot_root),
        SCMP_SYS(process_vm_readv),
        SCMP_SYS(process_vm_writev),
        SCMP_SYS(ptrace),
        SCMP_SYS(quotactl),
        SCMP_SYS(reboot),
        SCMP_SYS(request_key),
        SCMP_SYS(setdomainname),
        SCMP_SYS(sethostname),
        SCMP_SYS(setns),
        SCMP_SYS(settimeofday),
        SCMP_SYS(swapoff),
        SCMP_SYS(swapon),
        SCMP_SYS(umount2),
        SCMP_SYS(unshare),
        SCMP_SYS(userfaultfd),
    };
    CLEANUP(filter_release) scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);

    if (!filter)
        return err_set(err, -ENOMEM, "Cannot filter system calls");
    return load(filter, add(filter, SCMP_ACT_ERRNO(EPERM), calls, ARRAY_SIZE(calls)), err);
}
