#!/bin/sh
# Installs wan-i2v into ~/.local, without sudo, after checking the download's hash:
#
#   curl -fsSL https://github.com/wan-i2v/wan-i2v/releases/latest/download/install.sh | sh
#   sh install.sh [--version 0.1.0] [--prefix DIR] [--from URL]
#   sh install.sh --uninstall [--prefix DIR]
#
# --version  that release, and not the latest
# --prefix   where bin, lib and share are (~/.local)
# --from     where a release's files are: a mirror, or file:///a/folder
set -eu

say() { printf 'install: %s\n' "$*"; }
die() { printf 'install: error: %s\n' "$*" >&2; exit 1; }

# fetch URL FILE
fetch() {
  if command -v curl >/dev/null 2>&1; then curl -fsSL --retry 3 -o "$2" "$1"
  elif command -v wget >/dev/null 2>&1; then wget -qO "$2" "$1"
  else die "neither curl nor wget is here to fetch $1"; fi || die "cannot fetch $1"
}

hash_of() {
  if command -v sha256sum >/dev/null 2>&1; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1
}

# at_least 26.1 26 2: whether a version is that or later.
at_least() {
  major=${1%%.*} minor=${1#*.}
  [ "$minor" != "$1" ] || minor=0
  minor=${minor%%.*}
  [ "$major" -gt "$2" ] || { [ "$major" -eq "$2" ] && [ "$minor" -ge "$3" ]; }
}

# Sets target to the bundle for this machine.
find_target() {
  case $(uname -sm) in
    "Darwin arm64")
      system=$(sw_vers -productVersion)
      at_least "$system" 14 0 || die "found macOS $system; MLX needs macOS 14 or later"
      target=aarch64-apple-darwin
      # MLX for macOS 26 uses an M5's matrix units.
      if at_least "$system" 26 2; then target=$target-macos26; fi
      ;;
    "Darwin x86_64") die "found a Mac with an Intel processor, or a terminal under Rosetta; MLX needs Apple silicon" ;;
    "Linux x86_64" | "Linux aarch64")
      libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || libc="another C library"
      at_least "${libc#glibc }" 2 35 2>/dev/null ||
        die "found $libc; MLX needs glibc 2.35 or later (Debian 12, Ubuntu 22.04)"
      target=$(uname -m)-unknown-linux-gnu
      ;;
    *) die "found $(uname -sm); there are bundles for Apple silicon and for Linux on x86-64 and Arm" ;;
  esac
}

# Removes what an installation put into $prefix, by its list.
remove() {
  # The longest names first, so that folders are empty when they come.
  sort -r "$list" | while IFS= read -r name; do
    case $name in
      /* | *..*) ;; # no name of ours
      */) rmdir "$prefix/$name" 2>/dev/null || true ;; # others may have files there
      *) rm -f "$prefix/$name" ;;
    esac
  done
  rm -f "$list"
  rmdir "$prefix/share/wan-i2v" 2>/dev/null || true
}

main() {
  prefix=${HOME:?}/.local version='' from='' uninstall=''
  while [ $# -gt 0 ]; do
    case $1 in
      --uninstall) uninstall=yes ;;
      --version | --prefix | --from)
        [ $# -gt 1 ] || die "$1 needs a value"
        case $1 in
          --version) version=${2#v} ;;
          --prefix) prefix=$2 ;;
          --from) from=$2 ;;
        esac
        shift
        ;;
      -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" && exit ;;
      *) die "unknown option $1 (--help)" ;;
    esac
    shift
  done
  list=$prefix/share/wan-i2v/files

  if [ -n "$uninstall" ]; then
    [ -e "$list" ] || die "$prefix has no installation of wan-i2v by this script: no $list"
    remove
    say "removed wan-i2v from $prefix; models, settings and caches stay where they are"
    exit
  fi

  find_target
  if [ -z "$from" ]; then
    from=https://github.com/wan-i2v/wan-i2v/releases
    if [ -n "$version" ]; then from=$from/download/v$version; else from=$from/latest/download; fi
  fi
  mkdir -p "$prefix"
  temp=$(mktemp -d "$prefix/.wan-i2v.XXXXXX")
  trap 'rm -rf "$temp"' EXIT
  trap 'exit 130' INT TERM

  fetch "$from/SHA256SUMS" "$temp/sums"
  pattern=${version:-[0-9.]*}
  wanted=$(grep -E "^[0-9a-f]{64}  wan-i2v-${pattern}-$target\.tar\.gz\$" "$temp/sums" | head -1) || wanted=''
  [ -n "$wanted" ] || die "$from/SHA256SUMS names no bundle${version:+ of $version} for $target"
  name=${wanted##* }
  say "fetching $name"
  fetch "$from/$name" "$temp/$name"
  found=$(hash_of "$temp/$name")
  [ "$found" = "${wanted%% *}" ] ||
    die "$name is damaged or not what was released: its SHA-256 is $found, and SHA256SUMS has ${wanted%% *}"

  tar -xzf "$temp/$name" -C "$temp"
  new=$temp/${name%.tar.gz}
  said=$("$new/bin/wan-i2v" --version 2>&1 </dev/null) || die "the program does not run here: $said"

  if [ -e "$list" ]; then remove; fi
  # The program last: what is interrupted is not there, rather than half there.
  (
    cd "$new"
    find . -type d ! -name . | sed 's/^\.\///; s/$/\//'
    find . -type f | sed 's/^\.\///' | sort -r
  ) >"$temp/files"
  mkdir -p "$prefix/share/wan-i2v"
  cp "$temp/files" "$list"
  while IFS= read -r file; do
    case $file in
      */) mkdir -p "$prefix/$file" ;;
      *) mv -f "$new/$file" "$prefix/$file" ;;
    esac
  done <"$temp/files"
  say "installed $prefix/bin/wan-i2v ($(printf '%s\n' "$said" | head -1))"
  case :$PATH: in
    *:"$prefix/bin":*) ;;
    *) say "put it on your PATH: export PATH=\"$prefix/bin:\$PATH\"" ;;
  esac
}

main "$@"
