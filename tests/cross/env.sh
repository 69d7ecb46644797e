# For the scripts beside it: Debian's second toolchain, which builds any target's standard library from source, and what
# each target needs beside it. Sourced in the repository's root.

# soon built, and small enough to be started often
export CARGO_PROFILE_DEV_DEBUG=false CARGO_INCREMENTAL=0
target_dir=${CARGO_TARGET_DIR:-$PWD/target}/cross
mkdir -p "$target_dir"

skip() { # what is missing; a test that can't run says so and is no failure
    echo "SKIP: $*"
    exit 0
}

need() { # program, then the apt packages that bring it
    command -v "$1" >/dev/null && return
    shift
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || skip "apt-get install $*"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"; } >&2 ||
        skip "apt-get install $*"
}

zig=$target_dir/zig
zig() { # a C compiler and linker for any target, with the headers and the libraries' symbols of most; from PyPI
    [ -x "$zig/bin/python" ] || { python3 -m venv "$zig" && "$zig/bin/pip" install -q ziglang; } || skip "pip install ziglang"
}

c_compiler() { # for what has C in it (ring), and the linker
    case $1 in
    x86_64-pc-windows-gnu)
        need x86_64-w64-mingw32-gcc gcc-mingw-w64-x86-64
        # ld sorts the import table by the paths of its inputs: let them not say where the clone lies
        cat >"$target_dir/windows-link" <<END
#!/usr/bin/env bash
cd "$target_dir" && exec x86_64-w64-mingw32-gcc "\${@//"$target_dir/"/}"
END
        chmod +x "$target_dir/windows-link"
        # named: build scripts would compile with the linker
        export CC_x86_64_pc_windows_gnu=x86_64-w64-mingw32-gcc
        export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=$target_dir/windows-link
        ;;
    aarch64-unknown-linux-gnu)
        need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross
        export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
        ;;
    x86_64-unknown-linux-musl)
        need musl-gcc musl-tools
        # Debian's rustc brings no parts of musl, and musl-gcc's specs know no static-pie: say here what it is made of
        mkdir -p "$target_dir/musl"
        ln -sf "$(gcc -print-file-name=libgcc_eh.a)" "$target_dir/musl/libunwind.a"
        musl-gcc -O2 -c -o "$target_dir/musl/unwind.o" .ci/unwind.c
        cat >"$target_dir/musl/static-gcc" <<END
#!/usr/bin/env bash
args=() pie=
for arg; do
    [ "\$arg" = -static-pie ] && pie=yes || args+=("\$arg")
done
[ -z "\$pie" ] || args=(-static -nostartfiles -Wl,-pie,--no-dynamic-linker,-z,text /usr/lib/x86_64-linux-musl/{rcrt1,crti}.o
    "$(gcc -print-file-name=crtbeginS.o)" "\${args[@]}" "$(gcc -print-file-name=crtendS.o)" /usr/lib/x86_64-linux-musl/crtn.o)
exec musl-gcc "\${args[@]}" -L "$target_dir/musl" "$target_dir/musl/unwind.o" -Wl,-Bstatic -lunwind -lc
END
        chmod +x "$target_dir/musl/static-gcc"
        export CC_x86_64_unknown_linux_musl=musl-gcc
        export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER=$target_dir/musl/static-gcc
        export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS="-C link-self-contained=no -C target-feature=+crt-static"
        ;;
    aarch64-apple-darwin)
        zig
        # rustc and cc-rs talk to Apple's clang: leave out what zig does not take. iconv too, which the libc crate names and
        # nobody calls; a call would fail to link
        cat >"$target_dir/zig-cc" <<END
#!/usr/bin/env bash
args=()
while [ \$# != 0 ]; do
    case \$1 in
    -arch) shift ;;
    -mmacosx-version-min=* | -gfull | --target=* | -liconv) ;;
    *) args+=("\$1") ;;
    esac
    shift
done
exec "$zig/bin/python" -m ziglang cc -target aarch64-macos.11.0 \$ZIG_LINK "\${args[@]}"
END
        chmod +x "$target_dir/zig-cc"
        export CC_aarch64_apple_darwin=$target_dir/zig-cc CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER=$target_dir/zig-cc
        ;;
    esac
}

# Debian's cargo with Debian's compiler, not the one that rustup put first
debian_rust() {
    need /usr/bin/cargo-clippy rustc-web cargo-web rust-web-src rust-web-clippy
    export RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc CARGO=/usr/bin/cargo
    export PATH=/usr/bin:/usr/sbin:/bin:/sbin CARGO_TARGET_DIR=$target_dir
}
