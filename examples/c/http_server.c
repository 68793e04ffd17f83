/* A web server of one page, for many connections at once, on epoll. Usage: http_server [PORT] */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef UNISOCKETS_WITH_ALIAS
#include <unisockets.h>
#endif

enum { CLIENTS_MAX = 65536 };

static const char ANSWER[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n"
                             "Connection: close\r\n\r\nhello\n";
/* How much of "\r\n\r\n" a client has sent. */
static unsigned char matched[CLIENTS_MAX];

static void take(int epoll, int listener) {
    int client;
    while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct epoll_event event = {0};
        event.events = EPOLLIN;
        event.data.fd = client;
        if (client >= CLIENTS_MAX || epoll_ctl(epoll, EPOLL_CTL_ADD, client, &event) != 0)
            close(client);
        else
            matched[client] = 0;
    }
}

/* Reads a request; answers it and closes when it is whole. The answer always fits into an empty send buffer. */
static void serve(int client) {
    char bytes[4096];
    ssize_t got, at;
    while ((got = recv(client, bytes, sizeof bytes, 0)) > 0) {
        for (at = 0; at < got && matched[client] < 4; at++) {
            if (bytes[at] == "\r\n\r\n"[matched[client]])
                matched[client]++;
            else
                matched[client] = bytes[at] == '\r';
        }
        if (matched[client] == 4) {
            send(client, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL);
            close(client);
            return;
        }
    }
    if (got == 0 || errno != EAGAIN)
        close(client);
}

int main(int argc, char **argv) {
    struct sockaddr_in6 address;
    struct epoll_event event = {0};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    memset(&address, 0, sizeof address);
    address.sin6_family = AF_INET6;
    address.sin6_port = htons((in_port_t)(argc > 1 ? atoi(argv[1]) : 0));
    event.events = EPOLLIN;
    event.data.fd = listener;
    /* It is watched before it is bound, as some event loops do. */
    if (listener < 0 || epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) != 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1024) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &len) != 0) {
        perror("http_server");
        return 1;
    }
    printf("%d\n", ntohs(address.sin6_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, -1), at;
        if (count < 0 && errno != EINTR)
            return 1;
        for (at = 0; at < count; at++) {
            if (events[at].data.fd == listener)
                take(epoll, listener);
            else
                serve(events[at].data.fd);
        }
    }
}
