// Very many descriptors, and too few: sockets are there or an error says why they are not, and nothing hangs.
// Prints a line for each part, or what went wrong and ends with 1.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static int made(int type) {
    struct sockaddr_in any = {.sin_family = AF_INET};
    int fd = socket(AF_INET, type, 0);
    if (fd < 0)
        return -1;
    if (bind(fd, (struct sockaddr *)&any, sizeof any) == 0 && (type == SOCK_DGRAM || listen(fd, 1) == 0))
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

static struct sockaddr_in own(int fd) {
    struct sockaddr_in address;
    socklen_t len = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &len) != 0)
        fail("getsockname");
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

// Sends from the first to the last, and hears it there.
static void talk(int from, int to) {
    struct sockaddr_in address = own(to);
    char byte = 0;
    if (sendto(from, "x", 1, 0, (struct sockaddr *)&address, sizeof address) != 1)
        fail("sendto");
    struct pollfd wanted = {.fd = to, .events = POLLIN};
    if (poll(&wanted, 1, 20000) != 1 || recv(to, &byte, 1, 0) != 1 || byte != 'x')
        fail("recv");
}

static void set_limit(rlim_t limit) {
    struct rlimit now;
    if (getrlimit(RLIMIT_NOFILE, &now) != 0)
        fail("getrlimit");
    now.rlim_cur = limit < now.rlim_max ? limit : now.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &now) != 0)
        fail("setrlimit");
}

int main(void) {
    struct rlimit allowed;
    if (getrlimit(RLIMIT_NOFILE, &allowed) != 0)
        fail("getrlimit");
    // The node has some more than it has sockets.
    int wanted = allowed.rlim_max < 11000 ? (int)allowed.rlim_max - 1000 : 10000;
    int *fds = calloc(wanted, sizeof *fds);
    set_limit((rlim_t)wanted + 100);
    for (int i = 0; i < wanted; i++)
        if ((fds[i] = made(i % 4 ? SOCK_DGRAM : SOCK_STREAM)) < 0) {
            fprintf(stderr, "socket %d of %d: %s\n", i + 1, wanted, strerror(errno));
            return 1;
        }
    talk(fds[1], fds[wanted - 1]);
    printf("%d sockets\n", wanted);
    for (int i = 0; i < wanted; i++)
        close(fds[i]);

    // A limit of its own that is lower: EMFILE, and sockets again once there is room.
    set_limit(64);
    for (int round = 0; round < 2; round++) {
        int open = 0;
        while (open < 64 && (fds[open] = made(open % 2 ? SOCK_DGRAM : SOCK_STREAM)) >= 0)
            open++;
        if (open == 64 || open < 16 || errno != EMFILE)
            fail("a limit of 64");
        if (round == 0)
            printf("then %s\n", strerror(errno));
        for (int i = 0; i < open; i++)
            close(fds[i]);
    }
    set_limit(256);
    int first = made(SOCK_DGRAM), second = made(SOCK_DGRAM);
    if (first < 0 || second < 0)
        fail("after it");
    talk(first, second);
    printf("and on\n");

    // A connection that nobody can take now stays, and is taken whole later.
    int listener = made(SOCK_STREAM), client = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = own(listener);
    if (connect(client, (struct sockaddr *)&address, sizeof address) != 0 || send(client, "kept", 4, 0) != 4)
        fail("connect");
    struct pollfd waiting = {.fd = listener, .events = POLLIN};
    if (poll(&waiting, 1, 20000) != 1)
        fail("poll");
    int last = client > listener ? client : listener;
    while ((fds[0] = dup(0)) >= 0)
        last = fds[0] > last ? fds[0] : last;
    for (int i = 0; i < 3; i++)
        if (accept(listener, NULL, NULL) >= 0 || errno != EMFILE)
            fail("accept without a number");
    close(last);
    int taken = accept(listener, NULL, NULL);
    char text[4] = {0};
    if (taken < 0 || recv(taken, text, 4, MSG_WAITALL) != 4 || memcmp(text, "kept", 4) != 0)
        fail("accept");
    printf("accepted late\n");
    // Whoever looks for leaks needs some.
    for (int fd = 3; fd < 256; fd++)
        close(fd);
    free(fds);
    return 0;
}
