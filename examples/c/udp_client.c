/* Sends datagrams of several sizes to an echo server and compares what comes back. Usage: udp_client HOST PORT */
#define _GNU_SOURCE
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#ifdef UNISOCKETS_WITH_ALIAS
#include <unisockets.h>
#endif

int main(int argc, char **argv) {
    static const size_t lengths[] = {0, 1, 1000, 9000, 65507};
    static char sent[65507], got[65536];
    struct addrinfo hints = {0}, *list;
    struct timeval patience = {5, 0};
    size_t at, byte;
    int fd;
    hints.ai_family = AF_INET;
    hints.ai_socktype = SOCK_DGRAM;
    if (argc != 3 || getaddrinfo(argv[1], argv[2], &hints, &list) != 0) {
        fprintf(stderr, "usage: udp_client HOST PORT\n");
        return 2;
    }
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) != 0)
        return 1;
    for (byte = 0; byte < sizeof sent; byte++)
        sent[byte] = (char)(byte * 7 + byte / 251);
    for (at = 0; at < sizeof lengths / sizeof *lengths; at++) {
        struct sockaddr_in source;
        socklen_t len = sizeof source;
        if (sendto(fd, sent, lengths[at], 0, list->ai_addr, list->ai_addrlen) != (ssize_t)lengths[at] ||
            recvfrom(fd, got, sizeof got, 0, (struct sockaddr *)&source, &len) != (ssize_t)lengths[at] ||
            memcmp(sent, got, lengths[at]) != 0 || memcmp(&source, list->ai_addr, 8) != 0) {
            perror("udp_client");
            return 1;
        }
        printf("%zu\n", lengths[at]);
    }
    freeaddrinfo(list);
    return 0;
}
