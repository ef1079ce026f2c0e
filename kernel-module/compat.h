/* SPDX-License-Identifier: GPL-2.0-only */
/* Every difference between kernels, and nothing else. */
#ifndef SSA_COMPAT_H
#define SSA_COMPAT_H

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/net.h>
#include <linux/sched/mm.h>
#include <linux/uio.h>
#include <linux/version.h>
#include <net/genetlink.h>
#include <net/sock.h>

#define SSA_SINCE(major, minor) (KERNEL_VERSION(major, minor, 0) <= LINUX_VERSION_CODE)

/* 6.10: the arguments of accept became a structure. */
#if SSA_SINCE(6, 10)
#define SSA_ACCEPT(name) \
	int name(struct socket *sock, struct socket *newsock, struct proto_accept_arg *arg)
#define SSA_ACCEPT_FLAGS (arg->flags)
#else
#define SSA_ACCEPT(name) \
	int name(struct socket *sock, struct socket *newsock, int accept_flags, bool kern)
#define SSA_ACCEPT_FLAGS accept_flags
#endif

/* 6.5: sendpage became MSG_SPLICE_PAGES of sendmsg. */
#if SSA_SINCE(6, 5)
#define SSA_DECLARE_SENDPAGE void ssa_splice_eof(struct socket *sock)
#define SSA_SENDPAGE .splice_eof = ssa_splice_eof,
/* splice_eof ends what MSG_MORE announces. */
#define SSA_SPLICE_FLAGS(flags) ((flags) & MSG_SPLICE_PAGES ? MSG_SPLICE_PAGES | MSG_MORE : 0)
#else
#define SSA_DECLARE_SENDPAGE                                                                  \
	ssize_t ssa_sendpage(struct socket *sock, struct page *page, int offset, size_t size, \
			     int flags)
#define SSA_SENDPAGE .sendpage = ssa_sendpage,
#define SSA_SPLICE_FLAGS(flags) 0
#endif

/* 6.5: the offset of the IPv6 part is told, not computed from the end. */
#if SSA_SINCE(6, 5)
#define SSA_IPV6_OFFSET .ipv6_pinfo_offset = offsetof(struct ssa6_sock, np),
#else
#define SSA_IPV6_OFFSET
#endif

/*
 * 6.5: splice receives no more into an iterator of the pipe, which cannot be read back; one that
 * throws away never can.
 */
static inline bool ssa_can_read_back(const struct iov_iter *iter)
{
#if !SSA_SINCE(6, 5)
	if (iov_iter_is_pipe(iter))
		return false;
#endif
	return !iov_iter_is_discard(iter);
}

/* 6.2: the direction of an iterator got names. */
#if SSA_SINCE(6, 2)
#define SSA_DESTINATION ITER_DEST
#else
#define SSA_DESTINATION READ
#endif

/* 6.1: a filldir function returns whether to go on, not an error. */
#if SSA_SINCE(6, 1)
#define SSA_FILLDIR bool
#define SSA_FILLDIR_MORE true
#define SSA_FILLDIR_ENOUGH false
#else
#define SSA_FILLDIR int
#define SSA_FILLDIR_MORE 0
#define SSA_FILLDIR_ENOUGH 1
#endif

/* 6.1: commands from here on are checked strictly. */
#if SSA_SINCE(6, 1)
#define SSA_RESV_START .resv_start_op = 1,
#else
#define SSA_RESV_START
#endif

/* 6.0: a socket may ask for SOL_SOCKET options (SOCK_CUSTOM_SOCKOPT, some time after). */
static inline void ssa_want_socket_options(struct socket *sock)
{
#ifdef SOCK_CUSTOM_SOCKOPT
	set_bit(SOCK_CUSTOM_SOCKOPT, &sock->flags);
#endif
}

/* 6.7: get_file_rcu takes the address of the pointer. */
static inline struct file *ssa_exe_file(struct mm_struct *mm)
{
	struct file *file;

	rcu_read_lock();
#if SSA_SINCE(6, 7)
	file = get_file_rcu(&mm->exe_file);
#else
	file = rcu_dereference(mm->exe_file);
	if (file && !get_file_rcu(file))
		file = NULL;
#endif
	rcu_read_unlock();
	return file;
}

#endif
