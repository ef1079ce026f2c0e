// SPDX-License-Identifier: GPL-2.0-only
/*
 * Events on their way to the daemon, and its answers.
 *
 * An event is never pushed at the daemon: a daemon that does not read would then block the program that caused it.
 * Events are kept in a list, bounded for each user; one small message tells the daemon that there are some, and the
 * daemon fetches them until the list is empty.  No lock of a socket is needed here, so events may be posted under it.
 */
#include <linux/hashtable.h>
#include <linux/module.h>
#include <linux/nsproxy.h>
#include <linux/siphash.h>
#include <linux/slab.h>

#include "ssa.h"

static unsigned int max_events = 4096;
module_param(max_events, uint, 0644);
MODULE_PARM_DESC(max_events, "the most events of one user that the daemon has not answered");

static unsigned int max_sockets = 16384;
module_param(max_sockets, uint, 0644);
MODULE_PARM_DESC(max_sockets, "the most TLS sockets of one user");

static DEFINE_SPINLOCK(ssa_event_lock);
static LIST_HEAD(ssa_event_list);
static DEFINE_XARRAY(ssa_waiting);
static atomic64_t ssa_event_number = ATOMIC64_INIT(0);

static DEFINE_SPINLOCK(ssa_user_lock);
static DEFINE_HASHTABLE(ssa_users, 6);

static void ssa_user_unref(struct ssa_user *user)
{
	spin_lock(&ssa_user_lock);
	if (--user->refs)
		user = NULL;
	else
		hash_del(&user->node);
	spin_unlock(&ssa_user_lock);
	kfree(user);
}

void ssa_user_put(struct ssa_sock *s)
{
	struct ssa_user *user;

	/* Under the lock: a connection may be counted for the user of its listener at this moment. */
	spin_lock(&ssa_user_lock);
	user = s->user;
	s->user = NULL;
	spin_unlock(&ssa_user_lock);
	if (!user)
		return;
	atomic_dec(&user->sockets);
	ssa_user_unref(user);
}

/* Count a socket for the user who makes it. */
int ssa_user_get(struct ssa_sock *s)
{
	kuid_t uid = current_euid();
	struct ssa_user *user, *fresh;

	fresh = kzalloc(sizeof(*fresh), GFP_KERNEL_ACCOUNT);
	if (!fresh)
		return -ENOMEM;
	fresh->uid = uid;
	spin_lock(&ssa_user_lock);
	hash_for_each_possible(ssa_users, user, node, __kuid_val(uid)) {
		if (uid_eq(user->uid, uid))
			goto found;
	}
	user = fresh;
	fresh = NULL;
	hash_add(ssa_users, &user->node, __kuid_val(uid));
found:
	user->refs++;
	spin_unlock(&ssa_user_lock);
	kfree(fresh);
	s->user = user;
	if (atomic_inc_return(&user->sockets) > READ_ONCE(max_sockets) && !capable(CAP_SYS_RESOURCE)) {
		ssa_user_put(s);
		return -EMFILE;
	}
	return 0;
}

/* Count an accepted socket for the user of its listener, which the program may have closed. */
int ssa_user_share(struct ssa_sock *s, const struct ssa_sock *parent)
{
	spin_lock(&ssa_user_lock);
	s->user = parent->user;
	if (s->user)
		s->user->refs++;
	spin_unlock(&ssa_user_lock);
	if (!s->user)
		return -ECONNABORTED;
	if (atomic_inc_return(&s->user->sockets) > READ_ONCE(max_sockets)) {
		ssa_user_put(s);
		return -EMFILE;
	}
	return 0;
}

void ssa_event_put(struct ssa_event *event)
{
	if (!event || !refcount_dec_and_test(&event->refs))
		return;
	if (event->user) {
		if (event->wants_answer)
			atomic_dec(&event->user->events);
		ssa_user_unref(event->user);
	}
	/* It may have been a private key. */
	kvfree_sensitive(event->attributes, event->size);
	kvfree(event->value);
	kfree(event);
}

/*
 * An event about a socket, with room for its attributes.  The caller has the reference.
 */
struct ssa_event *ssa_event_new(const struct sock *sk, u8 command, size_t size)
{
	struct ssa_user *user = ssa_sk(sk)->user;
	struct ssa_event *event;

	event = kzalloc(sizeof(*event), GFP_KERNEL_ACCOUNT);
	if (!event)
		return ERR_PTR(-ENOMEM);
	refcount_set(&event->refs, 1);
	INIT_LIST_HEAD(&event->link);
	init_completion(&event->done);
	event->command = command;
	event->wants_answer = command != SSA_C_CLOSE_NOTIFY && command != SSA_C_ACCEPT_NOTIFY;
	event->number = atomic64_inc_return(&ssa_event_number);
	event->id = ssa_sk(sk)->id;
	event->session = ssa_sk(sk)->session;
	size += 2 * nla_total_size(sizeof(u64));
	event->attributes = kvmalloc(size, GFP_KERNEL_ACCOUNT);
	if (!event->attributes) {
		kfree(event);
		return ERR_PTR(-ENOMEM);
	}
	if (user) {
		spin_lock(&ssa_user_lock);
		user->refs++;
		spin_unlock(&ssa_user_lock);
		event->user = user;
		/* Those without an answer do not count: each socket holds its last one from its beginning. */
		if (event->wants_answer && atomic_inc_return(&user->events) > READ_ONCE(max_events)) {
			ssa_event_put(event);
			return ERR_PTR(-ENOBUFS);
		}
	}
	/* The space was reserved above. */
	ssa_event_add(event, SSA_A_EVENT, &event->number, sizeof(event->number));
	ssa_event_add(event, SSA_A_ID, &event->id, sizeof(event->id));
	return event;
}

/* Append an attribute; the caller of ssa_event_new has made room for it. */
int ssa_event_add(struct ssa_event *event, int type, const void *data, size_t size)
{
	struct nlattr *attribute = (struct nlattr *)(event->attributes + event->size);

	if (size > SSA_MAXIMUM_CHUNK)
		return -EMSGSIZE;
	attribute->nla_type = type;
	attribute->nla_len = nla_attr_size(size);
	memcpy(nla_data(attribute), data, size);
	memset((u8 *)nla_data(attribute) + size, 0, nla_padlen(size));
	event->size += nla_total_size(size);
	return 0;
}

/* A value is longer than an attribute may be: it is cut, and the daemon joins it. */
int ssa_event_add_value(struct ssa_event *event, const void *data, size_t size)
{
	const u8 *at = data;

	do {
		size_t part = min_t(size_t, size, SSA_MAXIMUM_CHUNK);
		int error = ssa_event_add(event, SSA_A_OPTVAL, at, part);

		if (error)
			return error;
		at += part;
		size -= part;
	} while (size);
	return 0;
}

/*
 * A number for the mount namespace in which the path of the executable holds.  Its inode number is not told to modules, so
 * this is a keyed hash: the same for the same namespace while the module is loaded, and nothing else.
 */
static u64 ssa_mount_namespace(void)
{
	static siphash_key_t key __read_mostly;

	net_get_random_once(&key, sizeof(key));
	return siphash_1u64((unsigned long)current->nsproxy->mnt_ns, &key);
}

/* Who makes the call: what the daemon's policy and its log go by. */
int ssa_event_add_caller(struct ssa_event *event)
{
	u64 device = 0, inode = 0, mounts, network = current->nsproxy->net_ns->ns.inum;
	u32 pid = task_tgid_nr(current);
	u32 uid = from_kuid(&init_user_ns, current_euid());
	char comm[TASK_COMM_LEN];
	const char *path = "";
	struct file *file = NULL;
	char *buffer;

	buffer = kmalloc(PATH_MAX, GFP_KERNEL_ACCOUNT);
	if (!buffer)
		return -ENOMEM;
	if (current->mm)
		file = ssa_exe_file(current->mm);
	if (file) {
		path = file_path(file, buffer, PATH_MAX);
		if (IS_ERR(path))
			path = "";
		device = new_encode_dev(file_inode(file)->i_sb->s_dev);
		inode = file_inode(file)->i_ino;
	}
	get_task_comm(comm, current);
	mounts = ssa_mount_namespace();
	ssa_event_add(event, SSA_A_PID, &pid, sizeof(pid));
	ssa_event_add(event, SSA_A_UID, &uid, sizeof(uid));
	ssa_event_add(event, SSA_A_COMM, comm, strlen(comm) + 1);
	ssa_event_add(event, SSA_A_EXECUTABLE, path, strlen(path) + 1);
	ssa_event_add(event, SSA_A_EXECUTABLE_DEVICE, &device, sizeof(device));
	ssa_event_add(event, SSA_A_EXECUTABLE_INODE, &inode, sizeof(inode));
	ssa_event_add(event, SSA_A_MOUNT_NAMESPACE, &mounts, sizeof(mounts));
	ssa_event_add(event, SSA_A_NETWORK_NAMESPACE, &network, sizeof(network));
	if (file)
		fput(file);
	kfree(buffer);
	return 0;
}

/*
 * Put an event in the list.  Where it wants an answer, the table of those that wait has a reference until there is one.
 * The caller keeps its own.
 */
int ssa_event_post(struct ssa_event *event)
{
	int error = 0;

	if (event->wants_answer) {
		refcount_inc(&event->refs);
		error = xa_err(xa_store(&ssa_waiting, event->number, event, GFP_KERNEL_ACCOUNT));
		if (error) {
			ssa_event_put(event);
			return error;
		}
	}
	refcount_inc(&event->refs);
	spin_lock(&ssa_event_lock);
	/* Under the lock, so that a daemon that is gone finds it and fails it, or we see that there is none. */
	if (event->session && event->session == ssa_session())
		list_add_tail(&event->link, &ssa_event_list);
	else
		error = -ENETDOWN;
	spin_unlock(&ssa_event_lock);
	if (!error) {
		ssa_kick();
		return 0;
	}
	ssa_event_put(event);
	if (event->wants_answer && xa_erase(&ssa_waiting, event->number))
		ssa_event_put(event);
	return error;
}

/* The oldest event that was not fetched, with its reference; NULL: there is none. */
struct ssa_event *ssa_event_next(void)
{
	struct ssa_event *event;

	spin_lock(&ssa_event_lock);
	event = list_first_entry_or_null(&ssa_event_list, struct ssa_event, link);
	if (event)
		list_del_init(&event->link);
	spin_unlock(&ssa_event_lock);
	return event;
}

/* Put an event back that could not be handed over; takes the reference. */
void ssa_event_return(struct ssa_event *event)
{
	spin_lock(&ssa_event_lock);
	list_add(&event->link, &ssa_event_list);
	spin_unlock(&ssa_event_lock);
}

/* Give an event its one answer; later ones find nothing. */
static void ssa_event_complete(struct ssa_event *event, int result, const void *value, size_t size)
{
	struct sock *sk;

	event->result = result;
	if (size) {
		event->value = kvmalloc(size, GFP_KERNEL);
		if (event->value) {
			memcpy(event->value, value, size);
			event->value_size = size;
		} else {
			event->result = -ENOMEM;
		}
	}
	switch (event->command) {
	case SSA_C_CONNECT_NOTIFY:
	case SSA_C_UPGRADE_NOTIFY:
		sk = ssa_get(event->id);
		if (!sk)
			break;
		lock_sock(sk);
		if (ssa_sk(sk)->state == SSA_CONNECTING)
			ssa_finish(sk, result ? -result : EIO);
		release_sock(sk);
		sock_put(sk);
		break;
	case SSA_C_SOCKET_NOTIFY:
		sk = ssa_get(event->id);
		if (!sk)
			break;
		WRITE_ONCE(ssa_sk(sk)->refused, result);
		sock_put(sk);
		break;
	}
	complete_all(&event->done);
	ssa_event_put(event);
}

/* The daemon's answer; one to an event that does not wait is ignored. */
void ssa_event_answer(u64 number, u64 id, int command, int result, const void *value, size_t size)
{
	struct ssa_event *event;

	xa_lock(&ssa_waiting);
	event = xa_load(&ssa_waiting, number);
	if (event && event->id == id)
		__xa_erase(&ssa_waiting, number);
	else
		event = NULL;
	xa_unlock(&ssa_waiting);
	if (event)
		ssa_event_complete(event, result, value, size);
}

/* Take an event back, unless the daemon has fetched it. */
static void ssa_event_withdraw(struct ssa_event *event)
{
	bool listed;

	spin_lock(&ssa_event_lock);
	listed = !list_empty(&event->link);
	list_del_init(&event->link);
	spin_unlock(&ssa_event_lock);
	if (listed)
		ssa_event_put(event);
}

/*
 * Wait for the answer to an event that was posted.  A signal ends the wait; the call may then be restarted, which makes
 * a new event.
 */
int ssa_event_wait(struct ssa_event *event)
{
	if (!wait_for_completion_interruptible(&event->done))
		return event->result;
	if (xa_erase(&ssa_waiting, event->number)) {
		ssa_event_withdraw(event);
		ssa_event_put(event);
		return -ERESTARTSYS;
	}
	/* It is being answered at this moment. */
	wait_for_completion(&event->done);
	return event->result;
}

/* The daemon is gone: all events that it has or could have fetched end. */
void ssa_events_fail(int error)
{
	struct ssa_event *event;
	unsigned long number;

	while ((event = ssa_event_next()))
		ssa_event_put(event);
	xa_for_each(&ssa_waiting, number, event)
		ssa_event_answer(number, event->id, 0, error, NULL, 0);
}
