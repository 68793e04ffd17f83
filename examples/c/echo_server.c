/* An echo server for one connection after the other, as in every book on sockets. Usage: echo_server [PORT] */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef UNISOCKETS_WITH_ALIAS
#include <unisockets.h>
#endif

static int fail(const char *what) {
    perror(what);
    return 1;
}

int main(int argc, char **argv) {
    struct sockaddr_in address;
    socklen_t len = sizeof address;
    int on = 1;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0)
        return fail("socket");
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_ANY);
    address.sin_port = htons((in_port_t)(argc > 1 ? atoi(argv[1]) : 0));
    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0)
        return fail("setsockopt");
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0)
        return fail("bind");
    if (listen(listener, 16) != 0)
        return fail("listen");
    if (getsockname(listener, (struct sockaddr *)&address, &len) != 0)
        return fail("getsockname");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        char bytes[65536];
        ssize_t got;
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            return fail("accept");
        while ((got = recv(client, bytes, sizeof bytes, 0)) > 0) {
            ssize_t sent = 0;
            while (sent < got) {
                ssize_t more = send(client, bytes + sent, (size_t)(got - sent), MSG_NOSIGNAL);
                if (more < 0)
                    break;
                sent += more;
            }
        }
        close(client);
    }
}
