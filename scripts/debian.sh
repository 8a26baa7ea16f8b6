# shellcheck shell=bash
#
# Fetches packages of a Debian suite of choice, whatever is installed, and
# unpacks them below the build folder. To be sourced, with bash; brings
# common.sh along.
#
# SPDX-License-Identifier: GPL-2.0-or-later

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Prints the Debian mirror that the user's apt uses. scripts/packages has run
# "apt-get update" if need be, so apt knows which source that is.
debian_mirror()
{
    if [ -n "${DEBIAN_MIRROR:-}" ]; then
        echo "$DEBIAN_MIRROR"
        return
    fi
    # shellcheck disable=SC2016 # apt's variables, not the shell's
    apt-get indextargets \
        --format '$(REPO_URI) $(ORIGIN) $(LABEL) $(CREATED_BY)' 2>/dev/null |
        awk '$2 == "Debian" && $3 == "Debian" && $4 == "Packages" &&
             $1 !~ /^cdrom:/ && !found { print $1; found = 1 }'
}

# private_apt SUITE COMMAND...: runs an apt tool that sees one suite of Debian
# and nothing else. The user's sources, lists, pins and packages are neither
# read nor changed; proxy settings are those of the user's apt.
private_apt()
{
    local suite=$1 dir=$build/debian-$1/apt
    shift
    mkdir -p "$dir"
    (
        lock "$dir"
        # Mirrors drop superseded versions: old lists name files that are gone.
        [ -n "$(find "$dir/ready" -mmin -60 2>/dev/null)" ] ||
            read_lists "$suite" "$dir"
    )
    run_private_apt "$dir" "$@"
}

read_lists()
{
    local suite=$1 dir=$2 mirror type
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mirror=$(debian_mirror)
    [ -n "$mirror" ] ||
        die "apt knows no Debian mirror: run 'apt-get update'," \
            "or set DEBIAN_MIRROR=URL"
    say "reading the package lists of $suite"
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    : > "$dir/status"
    for type in deb deb-src; do
        echo "$type [signed-by=$keyring] $mirror $suite main"
    done > "$dir/sources.list"
    run_private_apt "$dir" apt-get update -qq -o APT::Update::Error-Mode=any
    touch "$dir/ready"
}

run_private_apt()
{
    local dir=$1 tool=$2
    shift 2
    "$tool" -o Dir::Etc::sourcelist="$dir/sources.list" \
            -o Dir::Etc::sourceparts=/dev/null \
            -o Dir::Etc::preferences=/dev/null \
            -o Dir::Etc::preferencesparts=/dev/null \
            -o Dir::State="$dir" \
            -o Dir::State::status="$dir/status" \
            -o Dir::Cache="$dir/cache" \
            -o APT::Sandbox::User= \
            -o Acquire::Languages=none \
            -o Acquire::Retries=3 \
            "$@"
}

# Prints the versions of a source package that a suite lists, newest first.
source_versions()
{
    private_apt "$1" apt-cache showsrc --only-source "$2" |
        sed -n 's/^Version: //p' | sort -rV
}

# unpack_source SUITE PACKAGE DIR: DIR becomes the package's source tree, with
# Debian's patches applied.
unpack_source()
{
    local suite=$1 package=$2 dir=$3 files=$3.files version
    rm -rf "$dir" "$files"
    mkdir -p "$files"
    say "fetching the source package $package of $suite"
    # While a mirror is updated, the newest version in its lists may be gone.
    for version in $(source_versions "$suite" "$package"); do
        (cd "$files" && private_apt "$suite" apt-get source -qq \
             --download-only "$package=$version") 2> "$files.log" && break
        say "the mirror does not have $package $version"
        rm -f "$files"/*
    done
    [ -n "$(ls "$files")" ] ||
        { cat "$files.log" >&2; die "cannot download $package of $suite"; }
    say "unpacking $(cd "$files" && echo *.dsc)"
    dpkg-source --no-check -x "$files"/*.dsc "$files/tree" > "$dir.log" 2>&1 ||
        die "unpacking failed, see $dir.log"
    mv "$files/tree" "$dir"
    rm -rf "$files" "$files.log" "$dir.log"
}

# unpack_packages SUITE DIR PACKAGE...: unpacks binary packages below DIR. The
# packages they depend on are not fetched.
unpack_packages()
{
    local suite=$1 dir=$2 files=$2.files deb
    shift 2
    rm -rf "$dir" "$dir.new" "$files"
    mkdir -p "$files" "$dir.new"
    say "fetching $* of $suite"
    (cd "$files" && private_apt "$suite" apt-get download -qq "$@")
    for deb in "$files"/*.deb; do
        dpkg -x "$deb" "$dir.new"
    done
    mv "$dir.new" "$dir"
    rm -rf "$files"
}

# QEMU's build wants a newer meson than Debian 12 has, and firmware that is
# not older than QEMU. Prints the folder that has them: debs and firmware.
build_packages()
{
    local suite=trixie
    local dir=$build/debian-$suite
    (
        mkdir -p "$dir"
        lock "$dir"
        [ ! -d "$dir/firmware" ] || exit 0
        unpack_packages "$suite" "$dir/debs" meson python3-pycotap \
                        qemu-system-data seabios ipxe-qemu
        mkdir "$dir/firmware"
        ln -s "$dir"/debs/usr/share/{qemu,seabios}/* "$dir/firmware"
    )
    echo "$dir"
}

# Prints the path of a python that knows meson; meson itself is beside it. It
# is a virtual environment, so that PYTHONPATH and PATH have no influence on
# the build.
meson_python()
{
    local dir debs env
    dir=$(build_packages)
    debs=$dir/debs
    env=$dir/python
    (
        lock "$dir"
        [ ! -e "$env/bin/meson" ] || exit 0
        rm -rf "$env"
        /usr/bin/python3 -m venv --without-pip --system-site-packages "$env"
        cp -a "$debs"/usr/lib/python3/dist-packages/. \
              "$env"/lib/python3*/site-packages/
        sed "1s,.*,#!$env/bin/python3," "$debs/usr/bin/meson" > "$env/meson"
        chmod +x "$env/meson"
        mv "$env/meson" "$env/bin/meson"
    )
    echo "$env/bin/python3"
}
