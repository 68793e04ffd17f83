// Forks while other threads are in the middle of calls: children use sockets of their own, and none hangs.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 3, FORKS = 300 };

static atomic_int over;

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* Makes a socket that an epoll watches before it is bound, and ends it. */
static void once(int epoll, int binds) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct epoll_event event = {.events = EPOLLIN};
    struct sockaddr_in any = {.sin_family = AF_INET};
    if (fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        fail("epoll_ctl");
    if (binds && bind(fd, (struct sockaddr *)&any, sizeof any) != 0)
        fail("bind");
    if (epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL) != 0)
        fail("epoll_ctl, away");
    close(fd);
}

static void *busy(void *unused) {
    int epoll = epoll_create1(0);
    for (unsigned round = 0; !atomic_load(&over); round++)
        once(epoll, round % 64 == 0);
    close(epoll);
    return unused;
}

int main(void) {
    pthread_t threads[THREADS];
    alarm(60);
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, busy, NULL) != 0)
            fail("pthread_create");
    for (int i = 0; i < FORKS; i++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(10);
            int epoll = epoll_create1(0);
            once(epoll, i % 8 == 0);
            _exit(0);
        }
        int status = -1;
        if (child < 0 || waitpid(child, &status, 0) != child)
            fail("fork");
        if (status != 0) {
            fprintf(stderr, "child %d ended with %x\n", i, status);
            return 1;
        }
    }
    atomic_store(&over, 1);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    puts("no child hung");
    return 0;
}
