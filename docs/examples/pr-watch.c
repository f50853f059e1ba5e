/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asks several disks at once whether they are reserved, from an event loop: pr-watch SOCKET DISK...
 * One connection for each disk, because a connection carries one command at a time. SIGINT cancels.
 */
#include <fcntl.h>
#include <granary-pr.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DISKS 16

typedef struct Question {
    const char *name;
    int disk;
    granary_pr *pr;
    uint8_t data[24];
    granary_pr_result result;
} Question;

static Question questions[DISKS];

static void cancel(int number)
{
    for (int i = 0; i < DISKS; i++)
        if (questions[i].pr)
            granary_pr_cancel(questions[i].pr);
}

static void print_answer(const Question *question, int r)
{
    if (r < 0)
        printf("%s: %s\n", question->name, strerror(-r));
    else if (question->result.status != 0)
        printf("%s: SCSI status 0x%02x\n", question->name, question->result.status);
    else /* a reservation descriptor follows the header of eight bytes if there is a reservation */
        printf("%s: %s\n", question->name, question->result.data_bytes > 8 ? "reserved" : "free");
}

static int ask(Question *question, const char *socket, const char *name)
{
    /* PERSISTENT RESERVE IN, READ RESERVATION, allocation length 24 */
    static const uint8_t cdb[10] = {0x5e, 0x01, [8] = 24};

    question->name = name;
    question->disk = open(name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    question->pr = granary_pr_new(socket);
    if (question->disk < 0 || !question->pr ||
        granary_pr_start(question->pr, question->disk, cdb, sizeof(cdb), question->data,
            sizeof(question->data), 30000, &question->result) < 0) {
        perror(name);
        return -1;
    }
    return 0;
}

int main(int argc, char *argv[])
{
    struct pollfd fds[DISKS];
    int count = argc - 2, waiting = 0;

    if (count < 1 || count > DISKS) {
        fprintf(stderr, "usage: pr-watch SOCKET DISK...\n");
        return 1;
    }
    for (int i = 0; i < count; i++) {
        if (ask(&questions[i], argv[1], argv[2 + i]) < 0)
            return 1;
        /* The first dispatch comes without waiting for the descriptor. */
        fds[i] = (struct pollfd){.fd = granary_pr_fd(questions[i].pr), .events = POLLIN, .revents = POLLIN};
        waiting++;
    }
    signal(SIGINT, cancel);
    while (waiting > 0) {
        for (int i = 0; i < count; i++) {
            int r = fds[i].revents ? granary_pr_dispatch(questions[i].pr) : GRANARY_PR_AGAIN;

            if (r == GRANARY_PR_AGAIN)
                continue;
            print_answer(&questions[i], r);
            fds[i].fd = -1; /* poll() leaves it out from now on */
            fds[i].revents = 0;
            waiting--;
        }
        if (waiting > 0)
            poll(fds, (nfds_t)count, -1);
    }
    for (int i = 0; i < count; i++) {
        granary_pr *pr = questions[i].pr;

        questions[i].pr = NULL;
        granary_pr_free(pr);
        close(questions[i].disk);
    }
    return 0;
}
