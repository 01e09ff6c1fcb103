"""libbpf through ctypes: objects, maps, programs, links and pins, as far as the pipeline needs them.

Calls that fail raise `BpfError`, an `OSError` whose message says what was tried. Descriptors are closed by whoever opened them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p, create_string_buffer, sizeof
from dataclasses import dataclass
from pathlib import Path

from vtap_agent.errors import TellUser

BPF_MAP_TYPE_HASH = 1
BPF_MAP_TYPE_ARRAY = 2
BPF_MAP_TYPE_PERCPU_HASH = 5
BPF_MAP_TYPE_PERCPU_ARRAY = 6
BPF_MAP_TYPE_ARRAY_OF_MAPS = 12
PER_CPU_TYPES = frozenset({BPF_MAP_TYPE_PERCPU_HASH, BPF_MAP_TYPE_PERCPU_ARRAY})
BPF_F_NO_PREALLOC = 1
BPF_TCX_INGRESS, BPF_TCX_EGRESS = 46, 47
BPF_F_BEFORE = 1 << 3
BPF_XDP = 37
XDP_FLAGS_DRV_MODE = 1 << 2
"""enum bpf_attach_type, Linux 6.6 and newer."""
BPF_TC_INGRESS, BPF_TC_EGRESS = 1, 2
BPF_TC_F_REPLACE = 1
LOG_LINES = 20
ENOTSUPP = 524
"""The kernel's own number for what a type of map cannot do; no errno of user space."""
MAX_TCX = 64
LOOPBACK = 1
"""The ifindex of `lo`, in every network namespace."""
BATCH = 4096
"""Entries that are read at once of a map of any size."""
_Bytes = ctypes.Array[ctypes.c_char]
_NO_BATCH = frozenset({errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP})


class BpfError(OSError):
    """A failed bpf(2) operation."""


def _layout(name: str, *fields: tuple[str, type]) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


_MapCreateOpts = _layout(
    "_MapCreateOpts",
    ("sz", c_size_t),
    ("btf_fd", c_uint32),
    ("btf_key_type_id", c_uint32),
    ("btf_value_type_id", c_uint32),
    ("btf_vmlinux_value_type_id", c_uint32),
    ("inner_map_fd", c_uint32),
    ("map_flags", c_uint32),
    ("map_extra", c_uint64),
    ("numa_node", c_uint32),
    ("map_ifindex", c_uint32),
)
_TestRunOpts = _layout(
    "_TestRunOpts",
    ("sz", c_size_t),
    ("data_in", c_void_p),
    ("data_out", c_void_p),
    ("data_size_in", c_uint32),
    ("data_size_out", c_uint32),
    ("ctx_in", c_void_p),
    ("ctx_out", c_void_p),
    ("ctx_size_in", c_uint32),
    ("ctx_size_out", c_uint32),
    ("retval", c_uint32),
    ("repeat", c_int),
    ("duration", c_uint32),
    ("flags", c_uint32),
    ("cpu", c_uint32),
    ("batch_size", c_uint32),
)
_TcHook = _layout("_TcHook", ("sz", c_size_t), ("ifindex", c_int), ("attach_point", c_int), ("parent", c_uint32))
_TcOpts = _layout(
    "_TcOpts",
    ("sz", c_size_t),
    ("prog_fd", c_int),
    ("flags", c_uint32),
    ("prog_id", c_uint32),
    ("handle", c_uint32),
    ("priority", c_uint32),
)


class _MapInfo(ctypes.Structure):
    """struct bpf_map_info, as far as it is used."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
    )


class _LinkInfo(ctypes.Structure):
    """struct bpf_link_info with the tcx member of its union."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("pad", c_uint32),
        ("ifindex", c_uint32),
        ("attach_type", c_uint32),
    )


class _ProgInfo(ctypes.Structure):
    _fields_ = (("type", c_uint32), ("id", c_uint32))


@dataclass(frozen=True, slots=True)
class TestRun:
    """What BPF_PROG_TEST_RUN reported; `duration_ns` is the mean over the repetitions."""

    verdict: int
    data: bytes
    duration_ns: int


@dataclass(frozen=True, slots=True)
class Link:
    """A tcx link: where it is attached (0 when its device has gone) and which program it runs."""

    ifindex: int
    program_id: int


_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_vsnprintf = ctypes.CDLL(None).vsnprintf
_vsnprintf.argtypes = [c_void_p, c_size_t, c_char_p, c_void_p]
_said: list[str] = []


@_PRINT
def _remember(_level: int, form: bytes, arguments: int) -> int:
    buffer = create_string_buffer(4096)
    _vsnprintf(buffer, len(buffer), form, arguments)
    _said.extend(buffer.value.decode(errors="replace").splitlines())
    del _said[:-LOG_LINES]
    return 0


def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise TellUser("libbpf.so.1 is missing: install the package libbpf1") from error
    pointers = {
        "bpf_object__open_file": [c_char_p, c_void_p],
        "bpf_object__next_map": [c_void_p, c_void_p],
        "bpf_object__find_program_by_name": [c_void_p, c_char_p],
    }
    for name, arguments in pointers.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = c_void_p, arguments
    lib.bpf_map__name.restype, lib.bpf_map__name.argtypes = c_char_p, [c_void_p]
    numbers = {
        "bpf_object__load": [c_void_p],
        "bpf_object__close": [c_void_p],
        "bpf_map__fd": [c_void_p],
        "bpf_map__reuse_fd": [c_void_p, c_int],
        "bpf_map__set_max_entries": [c_void_p, c_uint32],
        "bpf_program__fd": [c_void_p],
        "bpf_obj_pin": [c_int, c_char_p],
        "bpf_obj_get": [c_char_p],
        "bpf_map_create": [c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p],
        "bpf_map_lookup_elem": [c_int, c_char_p, c_void_p],
        "bpf_map_update_elem": [c_int, c_char_p, c_char_p, c_uint64],
        "bpf_map_delete_elem": [c_int, c_char_p],
        "bpf_map_get_next_key": [c_int, c_char_p, c_void_p],
        "bpf_map_lookup_batch": [c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p],
        "bpf_obj_get_info_by_fd": [c_int, c_void_p, c_void_p],
        "bpf_prog_test_run_opts": [c_int, c_void_p],
        "bpf_link_create": [c_int, c_int, c_int, c_void_p],
        "bpf_link_update": [c_int, c_int, c_void_p],
        "bpf_link_detach": [c_int],
        "bpf_prog_query": [c_int, c_int, c_uint32, c_void_p, c_void_p, c_void_p],
        "bpf_tc_hook_create": [c_void_p],
        "bpf_tc_hook_destroy": [c_void_p],
        "bpf_tc_attach": [c_void_p, c_void_p],
        "bpf_tc_detach": [c_void_p, c_void_p],
        "bpf_tc_query": [c_void_p, c_void_p],
        "libbpf_num_possible_cpus": [],
    }
    for name, arguments in numbers.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = c_int, arguments
    lib.libbpf_set_print(_remember)
    return lib


_loaded: list[ctypes.CDLL] = []


def _lib() -> ctypes.CDLL:
    if not _loaded:
        _loaded.append(_library())
    return _loaded[0]


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno() or -result
        raise BpfError(number, f"{what}: {os.strerror(number)}")
    return result


def possible_cpus() -> int:
    """CPUs that may ever come up: so many values a per-CPU map has."""
    return _checked(_lib().libbpf_num_possible_cpus(), "count CPUs")


@dataclass(frozen=True, slots=True)
class _Batch:
    """Entries of a map, and where those after them begin."""

    keys: bytes
    values: bytes
    position: bytes
    is_last: bool


class Map:
    """A map by descriptor. Keys and values are bytes; a per-CPU value is all CPUs' values, each rounded up to 8 bytes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        info = _MapInfo()
        length = c_uint32(sizeof(info))
        _checked(_lib().bpf_obj_get_info_by_fd(fd, byref(info), byref(length)), "read a map's description")
        self.id: int = info.id
        self.type: int = info.type
        self.key_size: int = info.key_size
        self.value_size: int = info.value_size
        self.max_entries: int = info.max_entries
        self.name: str = info.name.decode()
        self.stride = (self.value_size + 7) // 8 * 8
        copies = possible_cpus() if self.type in PER_CPU_TYPES else 1
        self._buffer = create_string_buffer(self.stride * copies)
        self._next = create_string_buffer(self.key_size)
        self._room: tuple[int, _Bytes, _Bytes, _Bytes] | None = None
        self._batches = True

    def close(self) -> None:
        os.close(self.fd)

    def lookup(self, key: bytes) -> bytes | None:
        if _lib().bpf_map_lookup_elem(self.fd, key, self._buffer) >= 0:
            return self._buffer.raw if self.type in PER_CPU_TYPES else self._buffer.raw[: self.value_size]
        if ctypes.get_errno() == errno.ENOENT:
            return None
        raise BpfError(ctypes.get_errno(), f"read map {self.name}: {os.strerror(ctypes.get_errno())}")

    def update(self, key: bytes, value: bytes) -> None:
        _checked(_lib().bpf_map_update_elem(self.fd, key, value, 0), f"write map {self.name}")

    def delete(self, key: bytes) -> None:
        """Deleting what isn't there is no error."""
        if _lib().bpf_map_delete_elem(self.fd, key) < 0 and ctypes.get_errno() != errno.ENOENT:
            raise BpfError(ctypes.get_errno(), f"delete from map {self.name}: {os.strerror(ctypes.get_errno())}")

    def walk(self) -> Iterator[bytes]:
        """Each key once, as long as nothing is deleted meanwhile."""
        key: bytes | None = None
        while _lib().bpf_map_get_next_key(self.fd, key, self._next) >= 0:
            key = self._next.raw
            yield key
        if ctypes.get_errno() != errno.ENOENT:
            raise BpfError(ctypes.get_errno(), f"walk map {self.name}: {os.strerror(ctypes.get_errno())}")

    def values(self) -> list[bytes]:
        """All values of an array, in the order of their indices; all CPUs' of a per-CPU array together."""
        raw, size = self.read(0, self.max_entries), self.entry_size
        return [raw[i : i + size] for i in range(0, len(raw), size)]

    @property
    def entry_size(self) -> int:
        """Bytes of one entry's value as `read` returns it: all CPUs' of a per-CPU map together."""
        return len(self._buffer) if self.type in PER_CPU_TYPES else self.value_size

    def read(self, first: int, count: int) -> bytes:
        """Values of `count` entries of an array from index `first` on, one behind the other; in one call where the kernel can."""
        if self._batches:
            before = (first - 1).to_bytes(4, sys.byteorder) if first else None
            found = self._batch(before, count)
            if found is not None:
                return found.values
        return b"".join(self.lookup(index.to_bytes(4, sys.byteorder)) or b"" for index in range(first, first + count))

    def content(self) -> tuple[bytes, bytes]:
        """All keys and all values, each one behind the other in the same order, as long as nobody else writes meanwhile."""
        parts: list[_Batch] = []
        position: bytes | None = None
        while self._batches:
            found = self._batch(position, min(self.max_entries, BATCH))
            if found is None:
                break
            parts.append(found)
            if found.is_last:
                return b"".join(part.keys for part in parts), b"".join(part.values for part in parts)
            position = found.position
        entries = [(key, value) for key in list(self.walk()) if (value := self.lookup(key)) is not None]
        return b"".join(key for key, _ in entries), b"".join(value for _, value in entries)

    def _batch(self, after: bytes | None, count: int) -> _Batch | None:
        """BPF_MAP_LOOKUP_BATCH (Linux 5.6, per-CPU arrays 5.13); None where this kernel has none for this type of map."""
        if self._room is None or self._room[0] < count:
            self._room = (
                count,
                create_string_buffer(self.key_size * count),
                create_string_buffer(self.entry_size * count),
                create_string_buffer(max(4, self.key_size)),
            )
        _, keys, values, position = self._room
        found = c_uint32(count)
        result = _lib().bpf_map_lookup_batch(self.fd, after, position, keys, values, byref(found), None)
        number = ctypes.get_errno() if result < 0 else 0
        if number in _NO_BATCH:
            self._batches = False
            return None
        if number not in (0, errno.ENOENT):
            raise BpfError(number, f"read map {self.name}: {os.strerror(number)}")
        return _Batch(
            ctypes.string_at(keys, found.value * self.key_size),
            ctypes.string_at(values, found.value * self.entry_size),
            position.raw,
            is_last=number != 0,
        )

    def kernel_bytes(self) -> int:
        """What the kernel charges for it, by the map's fdinfo."""
        lines = Path(f"/proc/self/fdinfo/{self.fd}").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("memlock:"))


def create_map(kind: int, name: str, key_size: int, value_size: int, max_entries: int, flags: int = 0) -> Map:
    """A new map that lives as long as its descriptor, or as long as another map or a pin holds it."""
    opts = _MapCreateOpts(sz=sizeof(_MapCreateOpts), map_flags=flags)
    made = _lib().bpf_map_create(kind, name.encode()[:15], key_size, value_size, max_entries, byref(opts))
    return Map(_checked(made, f"create map {name}"))


def get_pinned(path: Path) -> int | None:
    """A new descriptor of what is pinned at `path`, None when nothing is."""
    fd = _lib().bpf_obj_get(os.fsencode(path))
    if fd >= 0:
        return fd
    if ctypes.get_errno() == errno.ENOENT:
        return None
    raise BpfError(ctypes.get_errno(), f"open {path}: {os.strerror(ctypes.get_errno())}")


def pin(fd: int, path: Path) -> None:
    """Gives what `fd` is a name in a bpffs, which keeps it alive."""
    _checked(_lib().bpf_obj_pin(fd, os.fsencode(path)), f"pin {path}")


class Object:
    """An opened object file; `load` turns it into maps and programs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = _lib().bpf_object__open_file(os.fsencode(path), None)
        if not self._handle:
            raise TellUser(f"{path} is no eBPF object that libbpf can read: {'; '.join(_said[-3:])}")
        self._maps: dict[str, int] = {}
        at = _lib().bpf_object__next_map(self._handle, None)
        while at:
            self._maps[_lib().bpf_map__name(at).decode()] = at
            at = _lib().bpf_object__next_map(self._handle, at)

    @property
    def map_names(self) -> list[str]:
        return list(self._maps)

    def resize(self, name: str, max_entries: int) -> None:
        _checked(_lib().bpf_map__set_max_entries(self._maps[name], max_entries), f"resize map {name}")

    def reuse(self, name: str, fd: int) -> None:
        _checked(_lib().bpf_map__reuse_fd(self._maps[name], fd), f"reuse map {name}")

    def load(self) -> None:
        _said.clear()
        result = _lib().bpf_object__load(self._handle)
        if result < 0:
            raise TellUser(
                f"the kernel refuses the eBPF programs ({os.strerror(-result)}): it has to be Linux 6.1 or newer and the agent "
                f"needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; libbpf says: {'; '.join(_said[-4:])}"
            )

    def map_fd(self, name: str) -> int:
        """A descriptor of one's own: it outlives the object."""
        return os.dup(_checked(_lib().bpf_map__fd(self._maps[name]), f"map {name}"))

    def program_fd(self, name: str) -> int:
        """A descriptor of one's own: it outlives the object."""
        program = _lib().bpf_object__find_program_by_name(self._handle, name.encode())
        if not program:
            raise TellUser(f"{self.path} has no program {name}: build it again")
        return os.dup(_checked(_lib().bpf_program__fd(program), f"program {name}"))

    def close(self) -> None:
        _lib().bpf_object__close(self._handle)


def program_id(fd: int) -> int:
    """The kernel's number of a loaded program."""
    info = _ProgInfo()
    length = c_uint32(sizeof(info))
    _checked(_lib().bpf_obj_get_info_by_fd(fd, byref(info), byref(length)), "read a program's description")
    return info.id


def link_info(fd: int) -> Link:
    """Where a tcx link is attached, and to which program."""
    info = _LinkInfo()
    length = c_uint32(sizeof(info))
    _checked(_lib().bpf_obj_get_info_by_fd(fd, byref(info), byref(length)), "read a link's description")
    return Link(ifindex=info.ifindex, program_id=info.prog_id)


class _LinkOpts(ctypes.Structure):
    """struct bpf_link_create_opts up to its flags, and the zeros that libbpf wants behind them."""

    _fields_ = (("sz", c_size_t), ("flags", c_uint32), ("zero", c_uint32 * 13))


def attach_tcx(program: int, ifindex: int, *, egress: bool = False, first: bool = False) -> int:
    """A new tcx link at ingress or egress, behind the others or in front of them. EINVAL from a kernel older than 6.6."""
    where = BPF_TCX_EGRESS if egress else BPF_TCX_INGRESS
    opts = _LinkOpts(sz=sizeof(_LinkOpts), flags=BPF_F_BEFORE if first else 0)
    return _checked(_lib().bpf_link_create(program, ifindex, where, byref(opts)), f"attach to interface {ifindex}")


def attach_xdp(program: int, ifindex: int) -> int:
    """A new link in the driver's own path, never the generic one."""
    opts = _LinkOpts(sz=sizeof(_LinkOpts), flags=XDP_FLAGS_DRV_MODE)
    return _checked(_lib().bpf_link_create(program, ifindex, BPF_XDP, byref(opts)), f"attach to interface {ifindex}")


def update_link(link: int, program: int) -> None:
    """Another program in place of the link's, without a packet in between."""
    _checked(_lib().bpf_link_update(link, program, None), "replace a link's program")


def detach_link(link: int) -> None:
    """Its program runs no more when this returns; one whose last name and descriptor go is detached too, but some time later."""
    _checked(_lib().bpf_link_detach(link), "detach a link")


def _clsact(ifindex: int, egress: bool) -> ctypes.Structure:
    return _TcHook(sz=sizeof(_TcHook), ifindex=ifindex, attach_point=BPF_TC_EGRESS if egress else BPF_TC_INGRESS)


def tcx_programs(ifindex: int, *, egress: bool = False) -> list[int]:
    """Numbers of the programs in the order in which they see packets, the first MAX_TCX of them; none before Linux 6.6."""
    ids, count = (c_uint32 * MAX_TCX)(), c_uint32(MAX_TCX)
    where = BPF_TCX_EGRESS if egress else BPF_TCX_INGRESS
    result = _lib().bpf_prog_query(ifindex, where, 0, None, ids, byref(count))
    if result < 0 and -result in (errno.EINVAL, errno.ENODEV, errno.ENOENT):
        return []
    if -result != errno.ENOSPC:
        _checked(result, f"query interface {ifindex}")
    return list(ids[: min(count.value, MAX_TCX)])


def has_tcx() -> bool:
    """Whether this kernel has tcx: Linux 6.6. Older ones don't know its hooks, whatever device is asked about."""
    return -_lib().bpf_prog_query(LOOPBACK, BPF_TCX_INGRESS, 0, None, None, byref(c_uint32(0))) != errno.EINVAL


def make_clsact(ifindex: int) -> bool:
    """Adds the clsact qdisc; False where its place is taken, by one or by an ingress qdisc (qdiscs.py)."""
    made = _lib().bpf_tc_hook_create(byref(_clsact(ifindex, egress=False)))
    if -made == errno.EEXIST:
        return False
    _checked(made, f"add clsact to interface {ifindex}")
    return True


def remove_clsact(ifindex: int) -> None:
    """Removes the clsact qdisc and all that hangs at it; nothing happens where there is none."""
    both = _TcHook(sz=sizeof(_TcHook), ifindex=ifindex, attach_point=BPF_TC_INGRESS | BPF_TC_EGRESS)
    result = _lib().bpf_tc_hook_destroy(byref(both))
    if result < 0 and -result not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
        _checked(result, f"remove clsact from interface {ifindex}")


def attach_clsact(program: int, ifindex: int, priority: int, handle: int, *, egress: bool = False) -> None:
    """Attaches at clsact ingress or egress in place of whatever has this priority and handle."""
    hook = _clsact(ifindex, egress)
    if (made := _lib().bpf_tc_hook_create(byref(hook))) < 0 and -made != errno.EEXIST:
        _checked(made, f"add clsact to interface {ifindex}")
    opts = _TcOpts(sz=sizeof(_TcOpts), prog_fd=program, flags=BPF_TC_F_REPLACE, handle=handle, priority=priority)
    _checked(_lib().bpf_tc_attach(byref(hook), byref(opts)), f"attach to interface {ifindex}")


def detach_clsact(ifindex: int, priority: int, handle: int, *, egress: bool = False) -> None:
    """Undoes `attach_clsact`; nothing happens where nothing has this priority and handle. The qdisc stays: others may use it."""
    hook, opts = _clsact(ifindex, egress), _TcOpts(sz=sizeof(_TcOpts), handle=handle, priority=priority)
    result = _lib().bpf_tc_detach(byref(hook), byref(opts))
    if result < 0 and -result not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
        _checked(result, f"detach from interface {ifindex}")


def clsact_program(ifindex: int, priority: int, handle: int, *, egress: bool = False) -> int | None:
    """The id of the program at this priority and handle of clsact, None without one."""
    hook = _clsact(ifindex, egress)
    opts = _TcOpts(sz=sizeof(_TcOpts), handle=handle, priority=priority)
    result = _lib().bpf_tc_query(byref(hook), byref(opts))
    if result >= 0:
        return opts.prog_id
    if -result in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
        return None
    return _checked(result, f"query interface {ifindex}")


def test_run(program: int, data: bytes, context: bytes = b"", repeat: int = 1) -> TestRun:
    """BPF_PROG_TEST_RUN with a frame and, optionally, a struct __sk_buff."""
    room = len(data) + 512
    out = create_string_buffer(room)
    frame = create_string_buffer(data, len(data))
    given = create_string_buffer(context, len(context)) if context else None
    opts = _TestRunOpts(
        sz=sizeof(_TestRunOpts),
        data_in=ctypes.addressof(frame),
        data_size_in=len(data),
        data_out=ctypes.addressof(out),
        data_size_out=room,
        ctx_in=ctypes.addressof(given) if given is not None else None,
        ctx_size_in=len(context),
        repeat=repeat,
    )
    _checked(_lib().bpf_prog_test_run_opts(program, byref(opts)), "run a program on a test packet")
    return TestRun(verdict=opts.retval, data=out.raw[: opts.data_size_out], duration_ns=opts.duration)
