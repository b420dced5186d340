/* Counts RTP packets on 127.0.0.1 and how far the gaps of each stream are from 20 ms.
 *
 * sink: prints its port; "b" on stdin begins a window, "e" ends it and prints one line of JSON. Arrival is the
 * kernel's receive time, so that a busy sink measures no lateness of its own. Streams are told apart by SSRC, which
 * must be under 65536.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 256
#define SIZE 2048
#define STREAMS 65536
#define BINS 200000 /* of 10 us */

static char buffers[BATCH][SIZE], controls[BATCH][256];
static int64_t last[STREAMS];
static uint32_t counts[STREAMS];
static uint64_t bins[BINS + 1];
static int open_window;
static uint64_t packets, gaps, gap_sum_ns;
static int64_t first_ns, last_ns;

static double quantile(double q) {
    uint64_t want = (uint64_t)(q * gaps), seen = 0;
    for (int bin = 0; bin <= BINS; bin++) {
        seen += bins[bin];
        if (seen > want || (seen == gaps && seen)) return bin * 0.01;
    }
    return 0;
}

static void begin(void) {
    memset(last, 0, sizeof last);
    memset(counts, 0, sizeof counts);
    memset(bins, 0, sizeof bins);
    packets = gaps = gap_sum_ns = 0;
    first_ns = last_ns = 0;
    open_window = 1;
}

static void end(void) {
    uint32_t streams = 0, least = 0, most = 0;
    for (int i = 0; i < STREAMS; i++) {
        if (!counts[i]) continue;
        if (!streams || counts[i] < least) least = counts[i];
        if (counts[i] > most) most = counts[i];
        streams++;
    }
    open_window = 0;
    printf("{\"packets\": %lu, \"streams\": %u, \"least\": %u, \"most\": %u, \"seconds\": %.6f, \"gap_ms\": %.5f, "
           "\"gap_error_ms\": {\"p50\": %.2f, \"p90\": %.2f, \"p99\": %.2f, \"p999\": %.2f}}\n",
           packets, streams, least, most, (last_ns - first_ns) / 1e9, gaps ? gap_sum_ns / 1e6 / gaps : 0, quantile(.5),
           quantile(.9), quantile(.99), quantile(.999));
    fflush(stdout);
}

static void count(struct msghdr *head, unsigned length) {
    int64_t at = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(head); c; c = CMSG_NXTHDR(head, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec stamp;
            memcpy(&stamp, CMSG_DATA(c), sizeof stamp);
            at = stamp.tv_sec * 1000000000LL + stamp.tv_nsec;
        }
    if (!open_window || length < 12) return;
    uint32_t ssrc;
    memcpy(&ssrc, (char *)head->msg_iov->iov_base + 8, 4);
    ssrc = ntohl(ssrc) & (STREAMS - 1);
    if (!first_ns) first_ns = at;
    last_ns = at;
    packets++;
    counts[ssrc]++;
    if (last[ssrc]) {
        int64_t error = llabs(at - last[ssrc] - 20000000LL) / 10000;
        bins[error > BINS ? BINS : error]++;
        gap_sum_ns += at - last[ssrc];
        gaps++;
    }
    last[ssrc] = at;
}

int main(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0), on = 1, size = 64 << 20;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size))
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address)) return perror("bind"), 1;
    getsockname(fd, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    struct mmsghdr heads[BATCH];
    struct iovec vectors[BATCH];
    struct pollfd words = {.fd = 0, .events = POLLIN};
    struct timespec nap = {.tv_nsec = 1000000};
    for (;;) {
        /* Nobody waits at the socket: to wake the sink would be work of the sender, and no network card asks for it. */
        nanosleep(&nap, NULL);
        for (int n = BATCH; n == BATCH;) {
            for (int i = 0; i < BATCH; i++) {
                vectors[i] = (struct iovec){buffers[i], SIZE};
                heads[i].msg_hdr = (struct msghdr){
                    .msg_iov = &vectors[i], .msg_iovlen = 1, .msg_control = controls[i], .msg_controllen = 256};
            }
            n = recvmmsg(fd, heads, BATCH, MSG_DONTWAIT, NULL);
            for (int i = 0; i < n; i++) count(&heads[i].msg_hdr, heads[i].msg_len);
        }
        if (poll(&words, 1, 0) > 0) { /* all that came before the word is counted */
            char word;
            if (read(0, &word, 1) <= 0) return 0;
            if (word == 'b') begin();
            if (word == 'e') end();
        }
    }
}
