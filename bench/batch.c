/* Does one system call for many datagrams pay? COUNT connected sockets, 272 bytes each, 64 at a time: by `send`, and by
 * one io_uring_enter, which is the only call that takes datagrams of different sockets.
 *
 * batch PORT COUNT: prints the microseconds a datagram of both, by the clock on the wall (a part of io_uring's work is
 * charged to nobody), each the best of many turns.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define SIZE 272
#define TURNS 200

static int ring, *sockets;
static unsigned *tail, *mask, *array, *done_head, *done_tail, *done_mask;
static struct io_uring_sqe *entries;
static struct io_uring_cqe *completions;
static char *datagrams;

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int open_ring(void) {
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    ring = syscall(SYS_io_uring_setup, BATCH, &params);
    if (ring < 0) return perror("io_uring_setup"), 1;
    int shared = MAP_SHARED | MAP_POPULATE, both = PROT_READ | PROT_WRITE;
    char *submitted =
        mmap(0, params.sq_off.array + params.sq_entries * 4, both, shared, ring, IORING_OFF_SQ_RING);
    char *done = mmap(0, params.cq_off.cqes + params.cq_entries * sizeof *completions, both, shared, ring,
                      IORING_OFF_CQ_RING);
    entries = mmap(0, params.sq_entries * sizeof *entries, both, shared, ring, IORING_OFF_SQES);
    if (submitted == MAP_FAILED || done == MAP_FAILED || entries == MAP_FAILED) return perror("mmap"), 1;
    tail = (void *)(submitted + params.sq_off.tail), mask = (void *)(submitted + params.sq_off.ring_mask);
    array = (void *)(submitted + params.sq_off.array);
    done_head = (void *)(done + params.cq_off.head), done_tail = (void *)(done + params.cq_off.tail);
    done_mask = (void *)(done + params.cq_off.ring_mask), completions = (void *)(done + params.cq_off.cqes);
    return 0;
}

static int by_send(int first, int count) {
    int sent = 0;
    for (int i = first; i < first + count; i++)
        sent += send(sockets[i], datagrams + i * SIZE, SIZE, MSG_DONTWAIT) == SIZE;
    return sent;
}

static int by_ring(int first, int count) {
    int sent = 0;
    for (int i = 0; i < count; i++) {
        unsigned place = (*tail + i) & *mask;
        entries[place] = (struct io_uring_sqe){.opcode = IORING_OP_SEND, .fd = sockets[first + i], .len = SIZE,
                                               .addr = (unsigned long)(datagrams + (first + i) * SIZE),
                                               .msg_flags = MSG_DONTWAIT};
        array[place] = place;
    }
    __atomic_store_n(tail, *tail + count, __ATOMIC_RELEASE);
    syscall(SYS_io_uring_enter, ring, count, count, IORING_ENTER_GETEVENTS, 0, 0);
    unsigned head = *done_head;
    for (; head != __atomic_load_n(done_tail, __ATOMIC_ACQUIRE); head++)
        sent += completions[head & *done_mask].res == SIZE;
    __atomic_store_n(done_head, head, __ATOMIC_RELEASE);
    return sent;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int count = atoi(argv[2]);
    struct sockaddr_in sink = {
        .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct rlimit files = {count + 64, count + 64};
    setrlimit(RLIMIT_NOFILE, &files);
    sockets = calloc(count, sizeof *sockets), datagrams = calloc(count, SIZE);
    for (int i = 0; i < count; i++) {
        sockets[i] = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        if (connect(sockets[i], (struct sockaddr *)&sink, sizeof sink)) return perror("connect"), 1;
    }
    if (open_ring()) return 1;
    int (*ways[2])(int, int) = {by_send, by_ring};
    double best[2] = {1e9, 1e9};
    for (int turn = 0; turn < 2 * TURNS; turn++) {
        double began = now_us();
        int sent = 0;
        for (int i = 0; i < count; i += BATCH) sent += ways[turn % 2](i, count - i < BATCH ? count - i : BATCH);
        double each = (now_us() - began) / count;
        if (sent != count) return fputs("not all were sent\n", stderr), 1;
        if (each < best[turn % 2]) best[turn % 2] = each;
        usleep(2000);
    }
    printf("%.4f %.4f\n", best[0], best[1]);
}
