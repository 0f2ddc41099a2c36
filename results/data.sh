#!/usr/bin/env bash
# Download what config/laptop.toml reads, into raw/: two human chromosomes, the genome of yeast,
# nineteen books, and 27 tasks of GUE.
#
#     bash results/data.sh
#     bash results/laptop.sh
#
# The same command goes on where it was stopped, and fetches nothing twice. A file is NAME.part
# until it is whole. UCSC publishes checksums, which are compared; for the books and GUE we know of
# none. A file that you have fetched yourself is used as it is.
#
# These addresses could not be reached from where the script was written. It was tried on a server
# of its test's own (tests/test_data.py), so an address may have moved.
#
# MIRROR names another server that has the files, for a class. There each file lies below the name
# of its host: with MIRROR=http://10.0.0.1, in http://10.0.0.1/www.gutenberg.org/cache/...
set -euo pipefail
cd "$(dirname "$0")/.."

web=${MIRROR:-https:/}
human=$web/hgdownload.soe.ucsc.edu/goldenPath/hg38/chromosomes
yeast=$web/hgdownload.soe.ucsc.edu/goldenPath/sacCer3/bigZips
books=$web/www.gutenberg.org/cache/epub
gue="$web/drive.usercontent.google.com/download?id=1uOrwlf07qGQuruXqGXWMpPn8avBoW7T-&confirm=t"

echo "The data keep their own licences:
    human chromosomes 21 and 22, yeast    UCSC                 free for any use
    nineteen books                        Project Gutenberg    public domain in the USA
    GUE                                   DNABERT-2            as its README says
                                          (https://github.com/MAGICS-LAB/DNABERT_2)"

fail() {
    echo "error: $*" >&2
    exit 1
}

# fetch ADDRESS FILE [CHECK]: the file, unless it is there. CHECK gets the address and the file.
fetch() {
    local address=$1 file=$2 check=${3:-true}
    if [ -f "$file" ]; then
        return
    fi
    echo "$file from $address"
    mkdir -p "$(dirname "$file")"
    curl -fL --retry 3 -C - -o "$file.part" "$address" ||
        fail "$file is not whole: run the same command, which goes on." \
            "If curl cannot go on, remove $file.part first"
    "$check" "$address" "$file.part"
    mv "$file.part" "$file"
}

# UCSC has an md5sum.txt in each folder.
check_md5() {
    local address=$1 file=$2 sums right found
    sums=$(curl -fsSL "${address%/*}/md5sum.txt") || fail "no ${address%/*}/md5sum.txt"
    right=$(awk -v name="${address##*/}" '$2 == name || $2 == "./" name { print $1 }' <<< "$sums")
    if [ -z "$right" ]; then
        echo "$file is not checked: ${address%/*}/md5sum.txt does not name it"
        return
    fi
    found=$(python -c "
import hashlib, sys
print(hashlib.file_digest(open(sys.argv[1], 'rb'), 'md5').hexdigest())" "$file")
    [ "$found" = "$right" ] ||
        fail "$file has another MD5 than md5sum.txt says: remove it, and run the same command"
}

# Google may give a page in place of a file.
check_zip() {
    unzip -tq "$2" > /dev/null ||
        fail "$2 is not a zip file: remove it. Follow the link to GUE in DNABERT-2's README," \
            "save the file as raw/GUE.zip, and run the same command"
}

# Two gzip files, one after the other, are a gzip file.
if [ ! -f raw/genome.fa.gz ]; then
    fetch "$human/chr21.fa.gz" raw/chr21.fa.gz check_md5
    fetch "$human/chr22.fa.gz" raw/chr22.fa.gz check_md5
    cat raw/chr21.fa.gz raw/chr22.fa.gz > raw/genome.part
    mv raw/genome.part raw/genome.fa.gz
fi

fetch "$yeast/sacCer3.fa.gz" raw/yeast.fa.gz check_md5

# A text for each number, with a pause for the server's sake, and then a blank line
numbers=(10 84 98 100 135 145 345 766 944 996 1184 1228 1342 1399 1661 2300 2600 2701 28054)
if [ ! -f raw/english.txt ]; then
    for number in "${numbers[@]}"; do
        if [ ! -f "raw/books/$number.txt" ]; then
            fetch "$books/$number/pg$number.txt" "raw/books/$number.txt"
            sleep 2
        fi
    done
    for number in "${numbers[@]}"; do
        cat "raw/books/$number.txt"
        echo
    done > raw/english.part
    mv raw/english.part raw/english.txt
fi

# The families of the 27 tasks. GUE has virus tasks too.
if [ ! -d raw/GUE ]; then
    fetch "$gue" raw/GUE.zip check_zip
    unzip -qo raw/GUE.zip 'GUE/EMP/*' 'GUE/mouse/*' 'GUE/prom/*' 'GUE/splice/*' 'GUE/tf/*' \
        -d raw/GUE.part
    mv raw/GUE.part/GUE raw/GUE
    rmdir raw/GUE.part
fi

echo "wrote raw/genome.fa.gz, raw/yeast.fa.gz, raw/english.txt and raw/GUE
next: bash results/laptop.sh"
