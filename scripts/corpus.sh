#!/usr/bin/env bash
# Builds a multilingual corpus with code, as JSONL, from Debian's documentation and source packages: English,
# Chinese, German, Japanese, French, and source code. Only through apt, from the archives that this machine is
# set up for.
#   scripts/corpus.sh FOLDER                  everything: some 300 MB of text; downloads 550 MB
#   scripts/corpus.sh FOLDER --slice 80MB     about so much text, by shares a language; downloads less
# Leaves FOLDER/<part>.jsonl.zst (.gz where there is no zstd), FOLDER/LICENCES.md, FOLDER/licences/<package>.
# Safe to stop and to run again: finished packages stay finished; what was downloaded stays in FOLDER/.work,
# which may be deleted afterwards.
set -euo pipefail

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit "$1"; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out= slice=
while (($#)); do
  case "$1" in
    --slice) slice=${2:-}; shift 2 || usage 1 >&2 ;;
    --help | -h) usage 0 ;;
    -*) echo "corpus: no option $1" >&2; usage 1 >&2 ;;
    *) [[ -z $out ]] || usage 1 >&2; out=$1; shift ;;
  esac
done
[[ -n $out ]] || usage 1 >&2
bytes=$((1 << 40))
if [[ -n $slice ]]; then
  [[ $slice =~ ^([0-9]+)(MB|GB)?$ ]] || { echo "corpus: --slice is $slice; it is a size such as 80MB" >&2; exit 1; }
  bytes=$((BASH_REMATCH[1] * 1000000))
  [[ ${BASH_REMATCH[2]} != GB ]] || bytes=$((bytes * 1000))
fi
for tool in apt-get dpkg-deb python3 tar xz; do
  command -v "$tool" >/dev/null || { echo "corpus: $tool is missing (this needs Debian or a child of it)" >&2; exit 1; }
done

# part | share of a slice in per cent
parts=("en|24" "zh|11" "de|11" "ja|10" "fr|11" "code|33")
# part | package | only below this path; small ones first, so that a slice downloads little
documents=(
  "en|debian-reference-en" "en|debian-faq" "en|developers-reference" "en|debian-policy" "en|r-doc-html"
  "en|manpages" "en|manpages-dev" "en|git-doc" "en|perl-doc" "en|postgresql-doc-15" "en|bash-doc"
  "en|libreoffice-help-en-us" "en|sqlite3-doc" "en|python3.11-doc"
  "en|debian-handbook|en-US" "en|gnome-user-docs|help/C"
  "zh|debian-reference-zh-cn" "zh|debian-faq-zh-cn" "zh|manpages-zh|zh_CN" "zh|libreoffice-help-zh-cn"
  "zh|maint-guide-zh-cn" "zh|debian-handbook|zh-CN" "zh|gnome-user-docs|help/zh_CN"
  "zh|debian-edu-doc-zh-cn" "zh|gimp-help-zh-cn"
  "de|debian-reference-de" "de|debian-faq-de" "de|developers-reference-de" "de|manpages-de" "de|manpages-de-dev"
  "de|libreoffice-help-de" "de|maint-guide-de" "de|debian-handbook|de-DE"
  "de|gnome-user-docs|help/de" "de|debian-edu-doc-de" "de|gimp-help-de"
  "ja|debian-reference-ja" "ja|debian-faq-ja" "ja|developers-reference-ja" "ja|manpages-ja" "ja|manpages-ja-dev"
  "ja|libreoffice-help-ja" "ja|maint-guide-ja" "ja|aptitude-doc-ja" "ja|debian-handbook|ja-JP"
  "ja|gnome-user-docs|help/ja" "ja|debian-edu-doc-ja" "ja|scilab-doc-ja" "ja|gimp-help-ja"
  "fr|debian-reference-fr" "fr|debian-faq-fr" "fr|developers-reference-fr" "fr|manpages-fr" "fr|manpages-fr-dev"
  "fr|libreoffice-help-fr" "fr|maint-guide-fr" "fr|debian-handbook|fr-FR"
  "fr|gnome-user-docs|help/fr" "fr|debian-edu-doc-fr" "fr|scilab-doc-fr" "fr|gimp-help-fr"
)
# part | source package
sources=(
  "code|zlib" "code|jq" "code|lua5.4" "code|node-lodash" "code|rust-regex" "code|golang-github-spf13-cobra"
  "code|libcommons-lang3-java" "code|redis" "code|coreutils" "code|curl" "code|git" "code|fmtlib" "code|python-django"
  "code|nginx" "code|tmux" "code|busybox" "code|python3.11"
)

mkdir -p "$out/.work/lists/partial" "$out/.work/cache/archives/partial" "$out/.work/done" "$out/licences"
out=$(cd "$out" && pwd)
work=$out/.work

# The machine's own archives, with sources as well, in lists of our own: nothing of the system changes, and no
# root is needed.
apt_folder=$work/etc
mkdir -p "$apt_folder/sources.list.d"
if ! [[ -e $work/lists.done ]]; then
  : >"$apt_folder/sources.list"
  for file in /etc/apt/sources.list.d/*.sources; do
    [[ -e $file ]] && sed -E 's/^Types:.*/Types: deb deb-src/' "$file" >"$apt_folder/sources.list.d/${file##*/}"
  done
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [[ -e $file ]] && sed -nE 's/^deb (.*)/deb \1\ndeb-src \1/p' "$file" >>"$apt_folder/sources.list"
  done
fi
apt() {
  local command=$1
  shift
  "apt-$command" -q -o Dir::Etc::sourcelist="$apt_folder/sources.list" \
    -o Dir::Etc::sourceparts="$apt_folder/sources.list.d" -o Dir::State::lists="$work/lists" \
    -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root -o Acquire::Retries=3 \
    -o Debug::NoLocking=1 "$@" </dev/null
}
if ! [[ -e $work/lists.done ]]; then
  echo "corpus: fetching package lists"
  apt get update >"$work/update.log" 2>&1 || { tail -n 5 "$work/update.log" >&2; exit 1; }
  touch "$work/lists.done"
fi

written() { { cat "$work/done/$1."*.size 2>/dev/null || true; } | awk '{ s += $1 } END { printf "%.0f", s }'; }

licence() {  # package, version, kind, copyright file
  local names
  cp "$4" "$out/licences/$1" 2>/dev/null || return 0
  names=$(sed -nE 's/^License: *([^ ].*)/\1/p' "$4" | sort -u | paste -sd, | sed 's/,/, /g')
  printf '| %s | %s | %s | %s |\n' "$1" "$2" "$3" "${names:-see licences/$1}" >"$work/done/$1.licence"
}

# Texts of a folder into done/<part>.<name>.jsonl; the .size file, written last, says that it is finished.
extract() {  # part, name, folder, only below, quota
  python3 "$here/corpus_text.py" --part "$1" --name "$2" --below "$4" --quota "$5" "$3" >"$work/done/new" ||
    return 1
  mv "$work/done/new" "$work/done/$1.$2.jsonl"
  wc -c <"$work/done/$1.$2.jsonl" >"$work/done/$1.$2.size.new"
  mv "$work/done/$1.$2.size.new" "$work/done/$1.$2.size"
}

failed=()
package() {  # kind, part, package, only below, quota
  local kind=$1 part=$2 name=$3 below=$4 quota=$5 tree=$work/tree version= file
  rm -rf "$tree" && mkdir -p "$tree" "$work/files/$name"
  cd "$work/files/$name"
  if [[ $kind == document ]]; then
    [[ -n $(ls ./*.deb 2>/dev/null) ]] || apt get download "$name" >"$work/get.log" 2>&1 || return 1
    file=$(ls ./*.deb)
    dpkg-deb -x "$file" "$tree" || return 1
    version=$(dpkg-deb -f "$file" Version)
    licence "$name" "$version" documentation "$tree/usr/share/doc/$name/copyright"
  else
    # Debian's own changes are of interest for their copyright file only: without them it is the source's own.
    [[ -e complete ]] || { apt get source --download-only "$name" >"$work/get.log" 2>&1 && touch complete; } ||
      { apt get source --download-only --tar-only "$name" >"$work/get.log" 2>&1 && touch complete; } || return 1
    version=$(ls | sed -nE 's/^[^_]*_(.*)\.(orig\.)?tar\..*/\1/p' | head -n 1)
    for file in ./*.tar.*; do
      [[ $file == *.asc ]] || tar -xf "$file" -C "$tree" || return 1
    done
    licence "$name" "$version" source "$({
      find "$tree" -path '*debian/copyright'
      find "$tree" -maxdepth 2 -iname 'licen[sc]e*' -o -maxdepth 2 -iname 'copying*'
    } | head -n 1)"
  fi
  extract "$part" "$name" "$tree" "$below" "$quota" || return 1
  rm -rf "$tree"
}

for entry in "${parts[@]}"; do
  part=${entry%|*}
  quota=$((bytes / 100 * ${entry#*|}))
  for item in "${documents[@]/#/document|}" "${sources[@]/#/source|}"; do
    IFS='|' read -r kind of name below <<<"$item"
    [[ $of == "$part" && ! -e $work/done/$part.$name.size ]] || continue
    have=$(written "$part")
    ((have < quota)) || break
    if (package "$kind" "$part" "$name" "${below:-}" $((quota - have))); then
      printf 'corpus: %-5s %-28s %6.1f MB so far\n' "$part" "$name" "$(written "$part" | awk '{print $1 / 1e6}')"
    else
      echo "corpus: $name could not be fetched or unpacked; going on without it" >&2
      tail -n 2 "$work/get.log" >&2 || true
      failed+=("$name")
    fi
  done
done

pack=(gzip -9n) ending=gz
if command -v zstd >/dev/null; then pack=(zstd -q -6 -c) ending=zst; fi
for entry in "${parts[@]}"; do
  part=${entry%|*}
  compgen -G "$work/done/$part.*.jsonl" >/dev/null || continue
  cat "$work/done/$part".*.jsonl | "${pack[@]}" >"$out/.$part.new"
  mv "$out/.$part.new" "$out/$part.jsonl.$ending"
done
{
  printf '# Where the corpus comes from\n\nDebian packages; the full terms of each are in `licences/<package>`.\n\n'
  printf '| package | version | | licences named in its copyright file |\n|---|---|---|---|\n'
  cat "$work/done/"*.licence
} >"$out/LICENCES.md.new"
mv "$out/LICENCES.md.new" "$out/LICENCES.md"

total=0
for entry in "${parts[@]}"; do
  size=$(written "${entry%|*}")
  total=$((total + size))
  printf 'corpus: %-5s %7.1f MB\n' "${entry%|*}" "$(awk "BEGIN { print $size / 1e6 }")"
done
printf 'corpus: all   %7.1f MB in %s\n' "$(awk "BEGIN { print $total / 1e6 }")" "$out"
((${#failed[@]} == 0)) || echo "corpus: without ${failed[*]}; run it again to try these once more" >&2
((total > 0))
