// SPDX-License-Identifier: GPL-2.0-only
/*
 * Events on their way to the daemon, and its answers.
 *
 * An event is never pushed at the daemon: a daemon that does not read would then block the program
 * that caused it. Events are kept in a list, bounded for each user; one small message tells the
 * daemon that there are some, and the daemon fetches them until the list is empty.  No lock of a
 * socket is needed here, so events may be posted under it.
 */
#include <linux/module.h>
#include <linux/nsproxy.h>
#include <linux/siphash.h>
#include <linux/slab.h>

#include "ssa.h"

static DEFINE_XARRAY(ssa_waiting);
static atomic64_t ssa_event_number = ATOMIC64_INIT(0);

void ssa_event_put(struct ssa_event *event)
{
	if (!event || !refcount_dec_and_test(&event->refs))
		return;
	ssa_user_uncharge(event);
	kvfree_sensitive(event->attributes, event->size);	/* it may be a private key */
	kvfree(event->value);
	kfree(event);
}

/*
 * An event about a socket, with room for its attributes.  The caller has the reference.
 */
struct ssa_event *ssa_event_new(const struct sock *sk, u8 command, size_t size)
{
	const struct ssa_sock *s = ssa_sk(sk);
	struct ssa_event *event;
	int error;

	event = kzalloc(sizeof(*event), GFP_KERNEL_ACCOUNT);
	if (!event)
		return ERR_PTR(-ENOMEM);
	refcount_set(&event->refs, 1);
	INIT_LIST_HEAD(&event->link);
	init_completion(&event->done);
	event->command = command;
	event->wants_answer = command != SSA_C_CLOSE_NOTIFY && command != SSA_C_ACCEPT_NOTIFY;
	event->number = atomic64_inc_return(&ssa_event_number);
	event->id = s->id;
	event->session = s->session;
	size += 2 * nla_total_size(sizeof(u64));
	event->attributes = kvmalloc(size, GFP_KERNEL_ACCOUNT);
	if (!event->attributes) {
		kfree(event);
		return ERR_PTR(-ENOMEM);
	}
	error = ssa_user_charge(event, s);
	if (error) {
		ssa_event_put(event);
		return ERR_PTR(error);
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
 * A number for the mount namespace in which the path of the executable holds.  Its inode number is
 * not told to modules, so this is a keyed hash: the same for the same namespace while the module is
 * loaded, and nothing else.
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
 * Put an event in the list of its worker.  Where it wants an answer, the table of those that wait
 * has a reference until there is one.  The caller keeps its own.
 */
int ssa_event_post(struct ssa_event *event)
{
	int error;

	if (event->wants_answer) {
		refcount_inc(&event->refs);
		error = xa_err(xa_store(&ssa_waiting, event->number, event, GFP_KERNEL_ACCOUNT));
		if (error) {
			ssa_event_put(event);
			return error;
		}
	}
	refcount_inc(&event->refs);
	/*
	 * Either a worker that goes away finds the event in its list or in the table, and fails it,
	 * or it is gone already.
	 */
	error = ssa_worker_post(event);
	if (!error)
		return 0;
	ssa_event_put(event);
	if (event->wants_answer && xa_erase(&ssa_waiting, event->number))
		ssa_event_put(event);
	return error;
}

/* Give an event its one answer; later ones find nothing. */
static void ssa_event_complete(struct ssa_event *event, int result, const void *value, size_t size)
{
	struct sock *sk = ssa_get(event->id);
	int refused = sk ? READ_ONCE(ssa_sk(sk)->refused) : 0;

	/*
	 * The daemon does not know a socket that it has refused: why it has is what the program
	 * wants to hear.
	 */
	if (result && refused)
		result = refused;
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
	switch (sk ? event->command : 0) {
	case SSA_C_CONNECT_NOTIFY:
	case SSA_C_UPGRADE_NOTIFY:
		lock_sock(sk);
		if (ssa_sk(sk)->state == SSA_CONNECTING)
			ssa_finish(sk, result ? -result : EIO);
		release_sock(sk);
		break;
	case SSA_C_SOCKET_NOTIFY:
		WRITE_ONCE(ssa_sk(sk)->refused, result);
		break;
	}
	if (sk)
		sock_put(sk);
	complete_all(&event->done);
	ssa_event_put(event);
}

/*
 * A worker's answer; one to an event that does not wait is ignored, one to another worker's is
 * refused.
 */
int ssa_event_answer(unsigned int session, u64 number, u64 id, int result, const void *value,
		     size_t size)
{
	struct ssa_event *event;
	int error = 0;

	xa_lock(&ssa_waiting);
	event = xa_load(&ssa_waiting, number);
	if (event && event->session != session)
		error = -EPERM;
	if (event && event->id == id && event->session == session)
		__xa_erase(&ssa_waiting, number);
	else
		event = NULL;
	xa_unlock(&ssa_waiting);
	if (event)
		ssa_event_complete(event, result, value, size);
	return error;
}

/*
 * Wait for the answer to an event that was posted.  A signal ends the wait; the call may then be
 * restarted, which makes a new event.
 */
int ssa_event_wait(struct ssa_event *event)
{
	if (!wait_for_completion_interruptible(&event->done))
		return event->result;
	if (xa_erase(&ssa_waiting, event->number)) {
		ssa_event_put(event);
		ssa_worker_withdraw(event);
		return -ERESTARTSYS;
	}
	/* It is being answered at this moment. */
	wait_for_completion(&event->done);
	return event->result;
}

/* A worker is gone: all events that it has or could have fetched end. */
void ssa_events_fail(unsigned int session, struct list_head *unfetched, int error)
{
	struct ssa_event *event, *next;
	unsigned long number = 0;

	list_for_each_entry_safe(event, next, unfetched, link) {
		list_del_init(&event->link);
		ssa_event_put(event);
	}
	for (;; number++) {
		xa_lock(&ssa_waiting);
		event = xa_find(&ssa_waiting, &number, ULONG_MAX, XA_PRESENT);
		while (event && event->session != session)
			event = xa_find_after(&ssa_waiting, &number, ULONG_MAX, XA_PRESENT);
		if (event)
			__xa_erase(&ssa_waiting, number);
		xa_unlock(&ssa_waiting);
		if (!event)
			return;
		ssa_event_complete(event, error, NULL, 0);
	}
}
