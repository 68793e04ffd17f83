/* Sends every datagram back to where it came from. Usage: udp_server [PORT] */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#ifdef UNISOCKETS_WITH_ALIAS
#include <unisockets.h>
#endif

int main(int argc, char **argv) {
    static char bytes[65536];
    struct sockaddr_in address;
    socklen_t len = sizeof address;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons((in_port_t)(argc > 1 ? atoi(argv[1]) : 0));
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &len) != 0) {
        perror("udp_server");
        return 1;
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct sockaddr_storage source;
        ssize_t got;
        len = sizeof source;
        got = recvfrom(fd, bytes, sizeof bytes, 0, (struct sockaddr *)&source, &len);
        if (got < 0)
            return 1;
        if (sendto(fd, bytes, (size_t)got, 0, (struct sockaddr *)&source, len) != got)
            perror("sendto");
    }
}
