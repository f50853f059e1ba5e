# SPDX-License-Identifier: Apache-2.0
"""How names of the schema are spelled in C."""

import re

# Keywords, and macros that compilers predefine in GNU mode.
RESERVED = set("""auto bool break case char const continue default do double else enum errno extern false float for goto
    if inline int linux long register restrict return short signed sizeof static struct switch true typedef typeof
    union unix unsigned void volatile while asm i386 NULL""".split())


def identifier(name):
    """A member, branch or command: dashes and dots become underscores."""
    name = re.sub(r'[^A-Za-z0-9_]', '_', name)
    return name + '_' if name in RESERVED or name[0].isdigit() else name


def snake(name):
    """BlockdevOptionsQcow2 -> blockdev_options_qcow2, QCryptoSecretFormat -> qcrypto_secret_format."""
    name = re.sub(r'([a-z0-9])([A-Z])', r'\1_\2', name)
    name = re.sub(r'([A-Z]{2})([A-Z][a-z])', r'\1_\2', name)
    return name.lower()


def camel(name):
    """block-export-add or BLOCK_EXPORT_DELETED -> BlockExportAdd, BlockExportDeleted."""
    words = re.split(r'[-_]', name)
    if name.isupper():
        words = [word.lower() for word in words]
    return ''.join(word[:1].upper() + word[1:] for word in words)


def constant(type_name, value):
    """A value of an enum."""
    return (snake(type_name) + '_' + re.sub(r'[^A-Za-z0-9]', '_', value)).upper()


def literal(text):
    """A C string literal."""
    return '"' + text.replace('\\', '\\\\').replace('"', '\\"') + '"'
