/* The plain names for the calls of unisockets.h, or the operating system's calls under the names with the prefix.
 * Included by unisockets.h. SPDX-License-Identifier: MIT OR Apache-2.0 */

#ifndef UNISOCKETS_ALIAS_H
#define UNISOCKETS_ALIAS_H

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

/* fcntl(2) and ioctl(2): the kernel's own, for virtual descriptors as for any other. */
int unisockets_fcntl(int fd, int command, ...);
int unisockets_ioctl(int fd, unsigned long request, ...);

#ifdef __cplusplus
}
#endif

#if defined(UNISOCKETS_WITH_ALIAS) && defined(UNISOCKETS_WITH_INVERSE_ALIAS)
#error "UNISOCKETS_WITH_ALIAS and UNISOCKETS_WITH_INVERSE_ALIAS exclude each other"
#endif

/* poll, select, fcntl and ioctl are not redirected, nor are read, write, dup or epoll_wait: the kernel's serve virtual
 * descriptors as they are. */
#if defined(UNISOCKETS_WITH_ALIAS)

#if defined(__PRAGMA_REDEFINE_EXTNAME) || defined(__clang__)
/* Changes what a function is linked to, and nothing else: a method or a variable of that name stays as it is. */
#pragma redefine_extname socket unisockets_socket
#pragma redefine_extname bind unisockets_bind
#pragma redefine_extname listen unisockets_listen
#pragma redefine_extname accept unisockets_accept
#pragma redefine_extname accept4 unisockets_accept4
#pragma redefine_extname connect unisockets_connect
#pragma redefine_extname shutdown unisockets_shutdown
#pragma redefine_extname close unisockets_close
#pragma redefine_extname getsockname unisockets_getsockname
#pragma redefine_extname getpeername unisockets_getpeername
#pragma redefine_extname send unisockets_send
#pragma redefine_extname sendto unisockets_sendto
#pragma redefine_extname sendmsg unisockets_sendmsg
#pragma redefine_extname sendmmsg unisockets_sendmmsg
#pragma redefine_extname recv unisockets_recv
#pragma redefine_extname recvfrom unisockets_recvfrom
#pragma redefine_extname recvmsg unisockets_recvmsg
#pragma redefine_extname recvmmsg unisockets_recvmmsg
#pragma redefine_extname getsockopt unisockets_getsockopt
#pragma redefine_extname setsockopt unisockets_setsockopt
#pragma redefine_extname epoll_ctl unisockets_epoll_ctl
#pragma redefine_extname getaddrinfo unisockets_getaddrinfo
#pragma redefine_extname freeaddrinfo unisockets_freeaddrinfo
#pragma redefine_extname getnameinfo unisockets_getnameinfo
#pragma redefine_extname gethostbyname unisockets_gethostbyname
#if defined(__USE_FORTIFY_LEVEL) && __USE_FORTIFY_LEVEL > 0
/* glibc has put functions of its own before these two, which call what they were linked to before. */
#define recv(...) unisockets_recv(__VA_ARGS__)
#define recvfrom(...) unisockets_recvfrom(__VA_ARGS__)
#endif
#else
#define socket unisockets_socket
#define bind unisockets_bind
#define listen unisockets_listen
#define accept unisockets_accept
#define accept4 unisockets_accept4
#define connect unisockets_connect
#define shutdown unisockets_shutdown
#define close unisockets_close
#define getsockname unisockets_getsockname
#define getpeername unisockets_getpeername
#define send unisockets_send
#define sendto unisockets_sendto
#define sendmsg unisockets_sendmsg
#define sendmmsg unisockets_sendmmsg
#define recv unisockets_recv
#define recvfrom unisockets_recvfrom
#define recvmsg unisockets_recvmsg
#define recvmmsg unisockets_recvmmsg
#define getsockopt unisockets_getsockopt
#define setsockopt unisockets_setsockopt
#define epoll_ctl unisockets_epoll_ctl
#define getaddrinfo unisockets_getaddrinfo
#define freeaddrinfo unisockets_freeaddrinfo
#define getnameinfo unisockets_getnameinfo
#define gethostbyname unisockets_gethostbyname
#endif

#elif defined(UNISOCKETS_WITH_INVERSE_ALIAS)

#define unisockets_socket socket
#define unisockets_bind bind
#define unisockets_listen listen
#define unisockets_accept accept
#define unisockets_accept4 accept4
#define unisockets_connect connect
#define unisockets_shutdown shutdown
#define unisockets_close close
#define unisockets_getsockname getsockname
#define unisockets_getpeername getpeername
#define unisockets_send send
#define unisockets_sendto sendto
#define unisockets_sendmsg sendmsg
#define unisockets_sendmmsg sendmmsg
#define unisockets_recv recv
#define unisockets_recvfrom recvfrom
#define unisockets_recvmsg recvmsg
#define unisockets_recvmmsg recvmmsg
#define unisockets_getsockopt getsockopt
#define unisockets_setsockopt setsockopt
#define unisockets_epoll_ctl epoll_ctl
#define unisockets_getaddrinfo getaddrinfo
#define unisockets_freeaddrinfo freeaddrinfo
#define unisockets_getnameinfo getnameinfo
#define unisockets_gethostbyname gethostbyname
#define unisockets_poll poll
#define unisockets_select select
#define unisockets_fcntl fcntl
#define unisockets_ioctl ioctl

#endif

#endif
