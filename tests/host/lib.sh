# What the scripts of tests/host have in common. Sourced, never run.
# shellcheck shell=bash disable=SC2034

host_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
repository=$(cd "$host_dir/../.." && pwd -P)
target_dir=$repository/target/host

# The status of every failure of the bed itself, so that it differs from the command's own.
bed_failure=125

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() {
    say "$*"
    exit "$bed_failure"
}

# Debian keeps depmod, modprobe and friends where a normal user's PATH doesn't look.
caller_path=$PATH
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

require_tools() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null ||
            fail "$tool is missing; install the packages named in tests/host/packages*.txt"
    done
}

# as_root COMMAND...: the only way in which these scripts get root's rights.
as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        command -v sudo >/dev/null || fail "'${1##*/}' needs root's rights, and there is no sudo"
        sudo -- "$@"
    fi
}

# qemu_version PROGRAM: of this QEMU, as one number: 702 for 7.2.
qemu_version() {
    local version
    version=$("$1" --version) || return
    [[ $version =~ ^QEMU\ emulator\ version\ ([0-9]+)[.]([0-9]+) ]] || fail "this is no QEMU: $version"
    echo $((BASH_REMATCH[1] * 100 + BASH_REMATCH[2]))
}

# The first QEMU whose TCG never executes code that another CPU has replaced.
sound_qemu=801

# debian_version: 12, 13, ... or nothing where this isn't Debian.
debian_version() {
    # shellcheck disable=SC1091
    (. /etc/os-release && [[ ${ID-} == debian ]] && echo "${VERSION_ID-}") || true
}

# debian_codename: bookworm, trixie, ... or nothing where this isn't Debian.
debian_codename() {
    # shellcheck disable=SC1091
    (. /etc/os-release && [[ ${ID-} == debian ]] && echo "${VERSION_CODENAME-}") || true
}

# debian_site CODENAME: where this machine has that release from, as its apt says; or nothing.
debian_site() {
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(RELEASE) $(CREATED_BY) $(COMPONENT) $(REPO_URI)' |
        awk -v release="$1" '$1 == release && $2 == "Packages" && $3 == "main" && !seen++ { print $4 }'
}

# real_kernel_package META: the versioned kernel package that a metapackage of Debian's stands for,
# or nothing if apt knows no such metapackage.
real_kernel_package() {
    apt-cache depends --no-recommends --no-suggests "$1" 2>/dev/null |
        sed -n 's/^ *Depends: *\(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1
}

# candidate_version PACKAGE: the version that apt would fetch.
candidate_version() {
    apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *//p' | grep -vx '(none)' || true
}

# unpack_package PACKAGE DIR: fetches a package of Debian's and unpacks it below DIR. Nothing is
# installed. apt checks the signature's chain, so what arrives is Debian's.
unpack_package() {
    local package=$1 dir=$2 options=()
    mkdir -p "$dir"
    # apt drops root's rights to a user who can't write here, and warns about it.
    ((EUID != 0)) || options=(-o APT::Sandbox::User=root)
    (
        cd "$dir" || exit
        if ! apt-get -qq "${options[@]}" download "$package" >apt.log 2>&1; then
            # Package lists that are older than the archive name files that are gone.
            say "refreshing apt's package lists, which don't lead to $package any more"
            as_root apt-get -qq update >>apt.log 2>&1 || true
            apt-get -qq "${options[@]}" download "$package" >>apt.log 2>&1 ||
                { sed 's/^/  apt: /' apt.log >&2; exit 1; }
        fi
        dpkg-deb -x ./*.deb .
        rm -f -- ./*.deb apt.log
    )
}

# modules_root DIR: below which directory of an unpacked kernel package lib/modules lies.
modules_root() {
    if [[ -d $1/lib/modules ]]; then echo "$1"; else echo "$1/usr"; fi
}

# kernel_release DIR: the release that `uname -r` of an unpacked kernel package says.
kernel_release() {
    local vmlinuz=("$1"/boot/vmlinuz-*)
    [[ -e ${vmlinuz[0]} ]] || return 1
    echo "${vmlinuz[0]##*/vmlinuz-}"
}

# module_files ROOT RELEASE MODULE...: files of these modules and of all that they depend on, in
# the order in which they load, each once and on a line of its own. Built-in ones are left out; an
# unknown one is an error.
module_files() {
    local root=$1 release=$2 module
    shift 2
    for module in "$@"; do
        modprobe -C /dev/null -d "$root" -S "$release" --show-depends "$module" || return
    done | sed -n 's/^insmod //; T; s/ *$//p' | awk '!seen[$0]++'
}

# copy_module FILE.ko[.xz|.zst|.gz] TO.ko
copy_module() {
    case $1 in
    *.ko) cp -- "$1" "$2" ;;
    *.ko.xz) xz -dc -- "$1" >"$2" ;;
    *.ko.zst) zstd -qdc -- "$1" >"$2" ;;
    *.ko.gz) gzip -dc -- "$1" >"$2" ;;
    *) return 1 ;;
    esac
}

# pack DIR: DIR as a newc archive on standard output; the same bytes for the same files.
pack() {
    find "$1" -exec touch -h -d @0 {} +
    (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 --reproducible)
}
