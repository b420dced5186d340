/* The floor: N streams of 50 packets a second, AES-256-GCM by libcrypto, one socket a stream, 20 slots in 20 ms.
 *
 * sender PORT STREAMS BYTES: prints "ready" when it sends, ends with its stdin.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <openssl/evp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 20

struct stream {
    int fd;
    uint16_t sequence;
    uint32_t timestamp, ssrc, nonce;
    EVP_CIPHER_CTX *cipher;
};

static void send_one(struct stream *s, const unsigned char *frame, int size) {
    unsigned char packet[2048], nonce[12] = {0};
    int length, total;
    uint16_t sequence = htons(s->sequence++);
    uint32_t timestamp = htonl(s->timestamp), ssrc = htonl(s->ssrc);
    s->timestamp += 960;
    packet[0] = 0x80, packet[1] = 0x78;
    memcpy(packet + 2, &sequence, 2), memcpy(packet + 4, &timestamp, 4), memcpy(packet + 8, &ssrc, 4);
    memcpy(nonce, &s->nonce, 4);
    s->nonce++;
    EVP_EncryptInit_ex(s->cipher, NULL, NULL, NULL, nonce);
    EVP_EncryptUpdate(s->cipher, NULL, &length, packet, 12);
    EVP_EncryptUpdate(s->cipher, packet + 12, &length, frame, size);
    total = 12 + length;
    EVP_EncryptFinal_ex(s->cipher, packet + total, &length);
    EVP_CIPHER_CTX_ctrl(s->cipher, EVP_CTRL_GCM_GET_TAG, 16, packet + total);
    memcpy(packet + total + 16, nonce, 4);
    send(s->fd, packet, total + 20, MSG_DONTWAIT);
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int count = atoi(argv[2]), size = atoi(argv[3]);
    struct sockaddr_in sink = {
        .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct rlimit files = {count + 64, count + 64};
    setrlimit(RLIMIT_NOFILE, &files);
    struct stream *streams = calloc(count, sizeof *streams);
    unsigned char frame[1500] = {0x78}, key[32] = {1};
    for (int i = 1; i < size; i++) frame[i] = i * 37;
    for (int i = 0; i < count; i++) {
        streams[i].ssrc = i + 1;
        streams[i].fd = socket(AF_INET, SOCK_DGRAM, 0);
        if (connect(streams[i].fd, (struct sockaddr *)&sink, sizeof sink)) return perror("connect"), 1;
        streams[i].cipher = EVP_CIPHER_CTX_new();
        EVP_EncryptInit_ex(streams[i].cipher, EVP_aes_256_gcm(), NULL, key, NULL);
    }
    puts("ready");
    fflush(stdout);
    struct timespec due;
    struct pollfd wait = {.fd = 0, .events = POLLIN};
    clock_gettime(CLOCK_MONOTONIC, &due);
    for (long tick = 0;; tick++) {
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
        for (int i = tick % SLOTS; i < count; i += SLOTS) send_one(&streams[i], frame, size);
        due.tv_nsec += 1000000;
        if (due.tv_nsec >= 1000000000) due.tv_nsec -= 1000000000, due.tv_sec++;
        if (tick % 100 == 0 && poll(&wait, 1, 0) > 0) return 0;
    }
}
