// SPDX-License-Identifier: GPL-2.0-only
/*
 * The files that options name.
 *
 * They are read here, with the rights of the program, from its root and its working directory, so
 * that the daemon never opens a path of a program.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/string_helpers.h>

#include "ssa.h"

#define SSA_MAXIMUM_ENTRIES	4096
#define SSA_SHOWN_PATH		256

static const char ssa_pem[] = "-----BEGIN";
static const char * const ssa_ca_endings[] = { ".pem", ".crt", ".cer", ".0" };

static bool ssa_is_pem(const u8 *value, size_t size)
{
	size_t at;

	for (at = 0; at + sizeof(ssa_pem) - 1 <= size; at++) {
		if (!memcmp(value + at, ssa_pem, sizeof(ssa_pem) - 1))
			return true;
	}
	return false;
}

/* Whether the value of an option is a path. */
bool ssa_names_file(int name, const u8 *value, size_t size)
{
	return (name == TLS_TRUSTED_PEER_CERTIFICATES || name == TLS_CERTIFICATE_CHAIN ||
		name == TLS_PRIVATE_KEY) &&
	       !ssa_is_pem(value, size);
}

static const char *ssa_option_name(int name)
{
	switch (name) {
	case TLS_TRUSTED_PEER_CERTIFICATES:
		return "TLS_TRUSTED_PEER_CERTIFICATES";
	case TLS_CERTIFICATE_CHAIN:
		return "TLS_CERTIFICATE_CHAIN";
	default:
		return "TLS_PRIVATE_KEY";
	}
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

		got = room ? kernel_read(file, content->data + content->size,
					 min_t(size_t, room, 65536), &position) :
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

/* A FIFO must not hang the caller, a terminal must not become his. */
static struct file *ssa_open(const char *path)
{
	return filp_open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
}

/* The names in a directory that may be certificates. */
struct ssa_names {
	struct dir_context context;
	unsigned int seen;
	unsigned int count;
	int error;
	char *names[];
};

static bool ssa_is_ca(const char *name, int size)
{
	int index, length;

	for (index = 0; index < ARRAY_SIZE(ssa_ca_endings); index++) {
		length = strlen(ssa_ca_endings[index]);
		if (size > length && !memcmp(name + size - length, ssa_ca_endings[index], length))
			return true;
	}
	return false;
}

static SSA_FILLDIR ssa_take_name(struct dir_context *context, const char *name, int size,
				 loff_t offset, u64 inode, unsigned int type)
{
	struct ssa_names *names = container_of(context, struct ssa_names, context);
	char *copy;

	if (++names->seen > SSA_MAXIMUM_ENTRIES) {
		names->error = -EFBIG;
		return SSA_FILLDIR_ENOUGH;
	}
	if (!ssa_is_ca(name, size))
		return SSA_FILLDIR_MORE;
	copy = kmemdup_nul(name, size, GFP_KERNEL_ACCOUNT);
	if (!copy) {
		names->error = -ENOMEM;
		return SSA_FILLDIR_ENOUGH;
	}
	names->names[names->count++] = copy;
	return SSA_FILLDIR_MORE;
}

static int ssa_compare_names(const void *a, const void *b)
{
	return strcmp(*(char * const *)a, *(char * const *)b);
}

/* One file of a directory; anything but a regular one is passed over, as OpenSSL does. */
static int ssa_read_entry(const char *directory, const char *name, struct ssa_content *content)
{
	struct file *file;
	char *path;
	int error = 0;

	path = kasprintf(GFP_KERNEL_ACCOUNT, "%s/%s", directory, name);
	if (!path)
		return -ENOMEM;
	file = ssa_open(path);
	kfree(path);
	if (IS_ERR(file))
		return PTR_ERR(file);
	if (S_ISREG(file_inode(file)->i_mode)) {
		error = ssa_read_file(file, content);
		if (!error && content->size == SSA_MAXIMUM_VALUE)
			error = -EFBIG;
		if (!error)
			content->data[content->size++] = '\n';
	}
	fput(file);
	return error;
}

/* The files of a directory one after the other, in the order of their names. */
static int ssa_read_directory(const char *path, struct file *directory, struct ssa_content *content)
{
	struct ssa_names *names;
	unsigned int index;
	int error;

	names = kvzalloc(struct_size(names, names, SSA_MAXIMUM_ENTRIES), GFP_KERNEL_ACCOUNT);
	if (!names)
		return -ENOMEM;
	*(filldir_t *)&names->context.actor = ssa_take_name;
	error = iterate_dir(directory, &names->context) ?: names->error;
	sort(names->names, names->count, sizeof(*names->names), ssa_compare_names, NULL);
	for (index = 0; index < names->count; index++) {
		if (!error)
			error = ssa_read_entry(path, names->names[index], content);
		kfree(names->names[index]);
	}
	kvfree(names);
	return error;
}

static int ssa_read_path(const char *path, bool directories, struct ssa_content *content)
{
	struct file *file;
	int error;

	file = ssa_open(path);
	if (IS_ERR(file))
		return PTR_ERR(file);
	if (S_ISREG(file_inode(file)->i_mode))
		error = ssa_read_file(file, content);
	else if (!S_ISDIR(file_inode(file)->i_mode))
		error = -EINVAL;
	else
		error = directories ? ssa_read_directory(path, file, content) : -EISDIR;
	fput(file);
	return error;
}

/* Say that a path cannot be read: its beginning, in ASCII, which keeps TLS_ERROR short. */
static void ssa_complain_of_path(struct ssa_sock *s, int name, const char *path, size_t size,
				 int error)
{
	char shown[SSA_SHOWN_PATH + 1];
	int whole = string_escape_mem(path, size, shown, SSA_SHOWN_PATH, ESCAPE_NAP | ESCAPE_HEX,
				      NULL);

	shown[min(whole, SSA_SHOWN_PATH)] = 0;
	ssa_complain(s, "%s: \"%s%s\": %pe", ssa_option_name(name), shown,
		     whole > SSA_SHOWN_PATH ? "..." : "", ERR_PTR(error));
}

/* An event for an option whose value names a file: the content, and the path for messages. */
struct ssa_event *ssa_event_of_file(struct sock *sk, int level, int name, const u8 *value,
				    size_t size)
{
	struct ssa_content content = {};
	struct ssa_event *event;
	char *path;
	int error;

	if (size && !value[size - 1])
		size--;
	if (!size || size > SSA_MAXIMUM_PATH || memchr(value, 0, size)) {
		ssa_complain(ssa_sk(sk), "%s: neither PEM nor a path", ssa_option_name(name));
		return ERR_PTR(-EINVAL);
	}
	path = kmemdup_nul(value, size, GFP_KERNEL_ACCOUNT);
	if (!path)
		return ERR_PTR(-ENOMEM);
	content.data = kvmalloc(SSA_MAXIMUM_VALUE, GFP_KERNEL_ACCOUNT);
	error = content.data ?
			ssa_read_path(path, name == TLS_TRUSTED_PEER_CERTIFICATES, &content) :
			-ENOMEM;
	event = ERR_PTR(error);
	if (error) {
		ssa_complain_of_path(ssa_sk(sk), name, path, size, error);
		goto out;
	}
	event = ssa_event_new(sk, SSA_C_SETSOCKOPT_NOTIFY,
			      content.size + SSA_MAXIMUM_CHUNKS * 2 * NLA_HDRLEN +
				      nla_total_size(size + 1) + 32);
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
