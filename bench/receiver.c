/* The floor of receiving: AES-256-GCM by libcrypto and libopus, one decoder a user, no jitter buffer, no socket.
 *
 * receiver LIBOPUS PACKETS USERS STEPS PACED: PACKETS has an Opus packet in hex on each line; every step brings one
 * packet of each user, 20 ms apart where PACED is 1. Prints JSON: processor seconds and frames.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct packet {
    int length;
    unsigned char data[1500];
};

static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    void *opus = dlopen(argv[1], RTLD_NOW);
    void *(*create)(int, int, int *) = opus ? (void *(*)(int, int, int *))dlsym(opus, "opus_decoder_create") : NULL;
    int (*decode)(void *, const unsigned char *, int32_t, int16_t *, int, int) =
        opus ? (int (*)(void *, const unsigned char *, int32_t, int16_t *, int, int))dlsym(opus, "opus_decode") : NULL;
    FILE *file = fopen(argv[2], "r");
    if (!create || !decode || !file) return fprintf(stderr, "no libopus or no packets\n"), 1;
    int users = atoi(argv[3]), steps = atoi(argv[4]), paced = atoi(argv[5]), count = 0, error, length, frames = 0;
    static struct packet packets[1000];
    static char line[4000];
    while (count < 1000 && fgets(line, sizeof line, file)) {
        for (length = 0; sscanf(line + 2 * length, "%2hhx", packets[count].data + length) == 1; length++);
        packets[count++].length = length;
    }
    void **decoders = calloc(users, sizeof *decoders);
    for (int user = 0; user < users; user++) decoders[user] = create(48000, 2, &error);
    unsigned char key[32];
    for (int i = 0; i < 32; i++) key[i] = i;
    EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new(), *sealer = EVP_CIPHER_CTX_new();
    EVP_DecryptInit_ex(cipher, EVP_aes_256_gcm(), NULL, key, NULL);
    EVP_EncryptInit_ex(sealer, EVP_aes_256_gcm(), NULL, key, NULL);
    struct packet *sealed = malloc((size_t)users * steps * sizeof *sealed);
    for (uint32_t number = 0; number < (uint32_t)(users * steps); number++) {
        struct packet *from = packets + (number / users + number % users) % count, *to = sealed + number;
        unsigned char nonce[12] = {0}, header[12] = {0x80, 0x78};
        uint32_t ssrc = __builtin_bswap32(number % users);
        memcpy(nonce, &number, 4), memcpy(header + 8, &ssrc, 4), memcpy(to->data, header, 12);
        EVP_EncryptInit_ex(sealer, NULL, NULL, NULL, nonce);
        EVP_EncryptUpdate(sealer, NULL, &length, header, 12);
        EVP_EncryptUpdate(sealer, to->data + 12, &length, from->data, from->length);
        EVP_EncryptFinal_ex(sealer, to->data + 12 + length, &error);
        EVP_CIPHER_CTX_ctrl(sealer, EVP_CTRL_GCM_GET_TAG, 16, to->data + 12 + length);
        memcpy(to->data + 28 + length, nonce, 4);
        to->length = 32 + length;
    }
    double began = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    static int16_t pcm[5760 * 2];
    for (int step = 0; step < steps; step++) {
        for (int n = 0; n < users; n++) {
            struct packet *packet = sealed + step * users + n;
            unsigned char nonce[12] = {0}, plain[1500];
            uint32_t ssrc;
            int size = packet->length - 32;
            memcpy(nonce, packet->data + packet->length - 4, 4), memcpy(&ssrc, packet->data + 8, 4);
            EVP_DecryptInit_ex(cipher, NULL, NULL, NULL, nonce);
            EVP_DecryptUpdate(cipher, NULL, &length, packet->data, 12);
            EVP_DecryptUpdate(cipher, plain, &length, packet->data + 12, size);
            EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_GCM_SET_TAG, 16, packet->data + 12 + size);
            if (EVP_DecryptFinal_ex(cipher, plain + length, &error) != 1) return fprintf(stderr, "forged\n"), 1;
            frames += decode(decoders[__builtin_bswap32(ssrc)], plain, size, pcm, 5760, 0) == 960;
        }
        double wait = began + (step + 1) * 0.02 - seconds(CLOCK_MONOTONIC);
        if (paced && wait > 0) {
            struct timespec pause = {0, (long)(wait * 1e9)};
            nanosleep(&pause, NULL);
        }
    }
    printf("{\"cpu_s\": %f, \"frames\": %d, \"packets\": %d}\n", seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu, frames, users * steps);
    return 0;
}
