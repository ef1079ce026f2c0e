// SPDX-License-Identifier: GPL-2.0-only
/*
 * getsockopt and setsockopt: those of TLS are the daemon's, those of the connection are the inner socket's.
 *
 * Files that an option names are read here, with the rights of the program, so that the daemon never opens a path of a
 * program.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sockptr.h>
#include <linux/tcp.h>
#include <net/tcp.h>

#include "ssa.h"

#define SSA_MAXIMUM_OPTION	(64 * 1024)
#define SSA_MAXIMUM_ENTRIES	4096

static const char ssa_pem[] = "-----BEGIN";

static bool ssa_is_pem(const u8 *value, size_t size)
{
	size_t at;

	for (at = 0; at + sizeof(ssa_pem) - 1 <= size; at++) {
		if (!memcmp(value + at, ssa_pem, sizeof(ssa_pem) - 1))
			return true;
	}
	return false;
}

/* What has been read of one file or of a directory's files. */
struct ssa_content {
	u8 *data;
	size_t size;
};

static int ssa_read_file(struct file *file, struct ssa_content *content)
{
	loff_t position = 0;
	ssize_t got;

	for (;;) {
		size_t room = SSA_MAXIMUM_VALUE - content->size;
		u8 probe;

		got = room ? kernel_read(file, content->data + content->size, min_t(size_t, room, 65536), &position) :
			     kernel_read(file, &probe, 1, &position);
		if (got <= 0)
			return got;
		if (!room)
			return -EFBIG;
		content->size += got;
		if (signal_pending(current))
			return -EINTR;
	}
}

static int ssa_read_path(const char *path, struct ssa_content *content)
{
	struct file *file;
	int error;

	/* A FIFO must not hang the caller. */
	file = filp_open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
	if (IS_ERR(file))
		return PTR_ERR(file);
	if (S_ISDIR(file_inode(file)->i_mode))
		error = -EISDIR;
	else if (!S_ISREG(file_inode(file)->i_mode))
		error = -EINVAL;
	else
		error = ssa_read_file(file, content);
	fput(file);
	return error;
}

/* An event for an option whose value names a file: the content, and the path for messages. */
static struct ssa_event *ssa_event_of_file(struct sock *sk, int level, int name, const u8 *value, size_t size)
{
	struct ssa_content content = {};
	struct ssa_event *event;
	char *path;
	int error;

	if (size && !value[size - 1])
		size--;
	if (!size || size > SSA_MAXIMUM_PATH || memchr(value, 0, size))
		return ERR_PTR(-EINVAL);
	path = kmemdup_nul(value, size, GFP_KERNEL_ACCOUNT);
	if (!path)
		return ERR_PTR(-ENOMEM);
	content.data = kvmalloc(SSA_MAXIMUM_VALUE, GFP_KERNEL_ACCOUNT);
	error = content.data ? ssa_read_path(path, &content) : -ENOMEM;
	event = ERR_PTR(error);
	if (error)
		goto out;
	event = ssa_event_new(sk, SSA_C_SETSOCKOPT_NOTIFY,
			      content.size + SSA_MAXIMUM_CHUNKS * 2 * NLA_HDRLEN + nla_total_size(size + 1) + 32);
	if (IS_ERR(event))
		goto out;
	ssa_event_add(event, SSA_A_OPTLEVEL, &level, sizeof(level));
	ssa_event_add(event, SSA_A_OPTNAME, &name, sizeof(name));
	ssa_event_add_value(event, content.data, content.size);
	ssa_event_add(event, SSA_A_FILE, path, size + 1);
out:
	if (content.data) {
		memzero_explicit(content.data, content.size);
		kvfree(content.data);
	}
	kfree(path);
	return event;
}

static bool ssa_names_file(int name)
{
	return name == TLS_TRUSTED_PEER_CERTIFICATES || name == TLS_CERTIFICATE_CHAIN || name == TLS_PRIVATE_KEY;
}

static int ssa_set_tls(struct sock *sk, int level, int name, const u8 *value, size_t size)
{
	struct ssa_sock *s = ssa_sk(sk);
	struct ssa_event *event;
	int error = ssa_served(s);

	if (error)
		return error;
	if (ssa_names_file(name) && ssa_state(s) == SSA_NEW && !ssa_is_pem(value, size)) {
		event = ssa_event_of_file(sk, level, name, value, size);
	} else {
		event = ssa_event_new(sk, SSA_C_SETSOCKOPT_NOTIFY, size + 4 * NLA_HDRLEN + 64);
		if (!IS_ERR(event)) {
			ssa_event_add(event, SSA_A_OPTLEVEL, &level, sizeof(level));
			ssa_event_add(event, SSA_A_OPTNAME, &name, sizeof(name));
			ssa_event_add_value(event, value, size);
		}
	}
	if (IS_ERR(event))
		return PTR_ERR(event);
	error = ssa_event_post(event);
	if (!error)
		error = ssa_event_wait(event);
	ssa_event_put(event);
	return error;
}

/* Why a descriptor cannot be upgraded, or 0. */
static int ssa_unfit(const struct sock *sk, const struct socket *tcp)
{
	if (!tcp)
		return -ENOTSOCK;
	if (tcp->sk->sk_family != sk->sk_family)
		return -EAFNOSUPPORT;
	if (tcp->sk->sk_protocol != IPPROTO_TCP || tcp->sk->sk_type != SOCK_STREAM ||
	    !net_eq(sock_net(tcp->sk), sock_net(sk)))
		return -EINVAL;
	if (tcp->sk->sk_state != TCP_ESTABLISHED && tcp->sk->sk_state != TCP_CLOSE_WAIT)
		return -ENOTCONN;
	return 0;
}

/* TLS_UPGRADE: a connected TCP socket of the caller becomes the inner one. */
static int ssa_upgrade(struct socket *sock, const u8 *value, size_t size)
{
	bool nonblock = sock->file && sock->file->f_flags & O_NONBLOCK;
	struct sockaddr_storage local, remote;
	struct tls_upgrade upgrade;
	struct ssa_event *event = NULL;
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	u8 blocking = !nonblock, role;
	struct file *file;
	int error, locals, remotes;

	if (size != sizeof(upgrade))
		return -EINVAL;
	memcpy(&upgrade, value, sizeof(upgrade));
	if (upgrade.role != SSA_ROLE_CLIENT && upgrade.role != SSA_ROLE_SERVER)
		return -EINVAL;
	role = upgrade.role;
	file = fget(upgrade.fd);
	if (!file)
		return -EBADF;
	error = ssa_unfit(sk, sock_from_file(file));
	if (error)
		goto put;
	lock_sock(sk);
	if (s->state == SSA_CONNECTING) {	/* the restart of one that a signal has interrupted */
		error = nonblock ? -EALREADY : ssa_await(sock, false);
		goto unlock;
	}
	error = s->state == SSA_NEW ? ssa_served(s) : -EISCONN;
	if (error)
		goto unlock;
	locals = ssa_address(sock_from_file(file), false, &local);
	remotes = ssa_address(sock_from_file(file), true, &remote);
	error = min(min(locals, remotes), 0);
	if (error)
		goto unlock;
	event = ssa_event_new(sk, SSA_C_UPGRADE_NOTIFY, SSA_ADDRESS_SIZE + 32);
	error = PTR_ERR_OR_ZERO(event);
	if (error)
		goto unlock;
	ssa_event_add(event, SSA_A_ROLE, &role, sizeof(role));
	ssa_event_add(event, SSA_A_BLOCKING, &blocking, sizeof(blocking));
	ssa_event_add(event, SSA_A_SOCKADDR_EXTERNAL, &local, locals);
	ssa_event_add(event, SSA_A_SOCKADDR_REMOTE, &remote, remotes);
	s->spare_file = s->inner_file;
	s->inner_file = get_file(file);
	s->inner = sock_from_file(file);
	tcp_sock_set_nodelay(s->inner->sk);
	sk->sk_state = TCP_SYN_SENT;
	sock->state = SS_CONNECTING;
	ssa_set_state(s, SSA_CONNECTING);
	error = ssa_event_post(event);
	if (error)
		ssa_finish(sk, -error);
	error = s->state == SSA_CONNECTING ? ssa_await(sock, nonblock) : sock_error(sk) ?: error;
	if (s->state == SSA_NEW)
		sock->state = SS_UNCONNECTED;
unlock:
	release_sock(sk);
	if (!IS_ERR_OR_NULL(event))
		ssa_event_put(event);
put:
	fput(file);
	return error;
}

/* An option that could bypass TLS, or do without its guarantees. */
static int ssa_forbidden(int level, int name)
{
	if (level == SOL_TLS)
		return -ENOPROTOOPT;
	if (level == SOL_TCP) {
		switch (name) {
		case TCP_ULP:
		case TCP_REPAIR:
		case TCP_REPAIR_QUEUE:
		case TCP_REPAIR_OPTIONS:
		case TCP_REPAIR_WINDOW:
		case TCP_QUEUE_SEQ:
		case TCP_MD5SIG:
		case TCP_MD5SIG_EXT:
		case TCP_ZEROCOPY_RECEIVE:
			return -ENOPROTOOPT;
		case TCP_FASTOPEN:
		case TCP_FASTOPEN_CONNECT:
		case TCP_FASTOPEN_KEY:
		case TCP_FASTOPEN_NO_COOKIE:
			return -EOPNOTSUPP;
		}
	}
	if (level == SOL_IPV6 && name == IPV6_ADDRFORM)
		return -ENOPROTOOPT;
	return 0;
}

int ssa_setsockopt(struct socket *sock, int level, int name, sockptr_t value, unsigned int size)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	u8 *copy;
	int error;

	if (level == SOL_SOCKET) {
		if (name == SO_ZEROCOPY)
			return -EOPNOTSUPP;
		error = sock_setsockopt(sock, level, name, value, size);
		if (!error) {
			lock_sock(sk);
			ssa_carry_to(sk, s->inner->sk);
			release_sock(sk);
		}
		return error;
	}
	if (level != IPPROTO_TLS) {
		error = ssa_forbidden(level, name);
		if (error)
			return error;
		/* The relay wants its segments at once; the program's choice would only slow it. */
		if (level == SOL_TCP && (name == TCP_NODELAY || name == TCP_CORK) && ssa_state(s) == SSA_ESTABLISHED &&
		    !s->ktls)
			return size < sizeof(int) ? -EINVAL : 0;
		return READ_ONCE(s->inner->ops)->setsockopt(s->inner, level, name, value, size);
	}
	if (size > SSA_MAXIMUM_OPTION)
		return -EMSGSIZE;
	copy = kvmalloc(size ?: 1, GFP_KERNEL_ACCOUNT);
	if (!copy)
		return -ENOMEM;
	error = -EFAULT;
	if (!copy_from_sockptr(copy, value, size)) {
		if (name == TLS_UPGRADE)
			error = ssa_upgrade(sock, copy, size);
		else
			error = ssa_set_tls(sk, level, name, copy, size);
	}
	memzero_explicit(copy, size);
	kvfree(copy);
	return error;
}

int ssa_getsockopt(struct socket *sock, int level, int name, char __user *value, int __user *size)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	struct ssa_event *event;
	int error, room, needed;

	if (level != IPPROTO_TLS) {
		error = ssa_forbidden(level, name);
		if (error)
			return error == -EOPNOTSUPP ? -ENOPROTOOPT : error;
		return READ_ONCE(s->inner->ops)->getsockopt(s->inner, level, name, value, size);
	}
	if (get_user(room, size))
		return -EFAULT;
	if (room < 0)
		return -EINVAL;
	error = ssa_served(s);
	if (error)
		return error;
	event = ssa_event_new(sk, SSA_C_GETSOCKOPT_NOTIFY, 64);
	if (IS_ERR(event))
		return PTR_ERR(event);
	ssa_event_add(event, SSA_A_OPTLEVEL, &level, sizeof(level));
	ssa_event_add(event, SSA_A_OPTNAME, &name, sizeof(name));
	error = ssa_event_post(event);
	if (!error)
		error = ssa_event_wait(event);
	if (!error) {
		needed = event->value_size;
		if (room >= needed && needed && copy_to_user(value, event->value, needed))
			error = -EFAULT;
		else if (put_user(needed, size))
			error = -EFAULT;
		else if (room < needed)
			error = -ERANGE;
	}
	ssa_event_put(event);
	return error;
}
