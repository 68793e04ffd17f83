/* Sends standard input to an echo server and writes what comes back. Usage: echo_client HOST PORT */
#define _GNU_SOURCE
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef UNISOCKETS_WITH_ALIAS
#include <unisockets.h>
#endif

static int connect_to(const char *host, const char *port) {
    struct addrinfo hints = {0}, *list, *entry;
    int fd = -1;
    int code;
    hints.ai_socktype = SOCK_STREAM;
    code = getaddrinfo(host, port, &hints, &list);
    if (code != 0) {
        fprintf(stderr, "%s: %s\n", host, gai_strerror(code));
        return -1;
    }
    for (entry = list; entry != NULL && fd < 0; entry = entry->ai_next) {
        fd = socket(entry->ai_family, entry->ai_socktype, entry->ai_protocol);
        if (fd >= 0 && connect(fd, entry->ai_addr, entry->ai_addrlen) != 0) {
            perror("connect");
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    return fd;
}

int main(int argc, char **argv) {
    char up[65536], down[65536];
    ssize_t waiting = 0, sent = 0;
    int fd, input_open = 1;
    if (argc != 3) {
        fprintf(stderr, "usage: echo_client HOST PORT\n");
        return 2;
    }
    fd = connect_to(argv[1], argv[2]);
    if (fd < 0)
        return 1;
    for (;;) {
        struct pollfd wanted[2] = {{fd, POLLIN, 0}, {-1, POLLIN, 0}};
        if (sent < waiting)
            wanted[0].events |= POLLOUT;
        else if (input_open)
            wanted[1].fd = STDIN_FILENO;
        if (poll(wanted, 2, -1) < 0)
            return 1;
        if (wanted[1].revents != 0) {
            sent = 0;
            waiting = read(STDIN_FILENO, up, sizeof up);
            if (waiting <= 0) {
                waiting = 0;
                input_open = 0;
                shutdown(fd, SHUT_WR);
            }
        }
        if (wanted[0].revents & POLLOUT) {
            ssize_t more = send(fd, up + sent, (size_t)(waiting - sent), MSG_DONTWAIT | MSG_NOSIGNAL);
            if (more > 0)
                sent += more;
        }
        if (wanted[0].revents & (POLLIN | POLLHUP | POLLERR)) {
            ssize_t got = recv(fd, down, sizeof down, 0);
            if (got < 0) {
                perror("recv");
                return 1;
            }
            if (got == 0)
                return 0;
            if (write(STDOUT_FILENO, down, (size_t)got) != got)
                return 1;
        }
    }
}
