#!/usr/bin/env bash
#
# s3-server.sh: a real S3 server for tests (Ceph RADOS Gateway) in one folder, on loopback, TLS 1.3 only.
# No systemd, no container, no root, no network. Objects live in memory.
#
#   s3-server.sh check                      exit 0 when the programs are here, else name the packages
#   s3-server.sh up    DIR [PORT]           start; PORT 0 or none: a free one. Prints KEY=value lines
#                                           S3_STS=true in the environment: it knows sessions of roles
#   s3-server.sh down  DIR [--gateway]      end with the objects saved; --gateway: an outage, "up" ends it
#   s3-server.sh down  DIR --purge          end at once and remove DIR
#   s3-server.sh env   DIR                  the KEY=value lines again
#   s3-server.sh pid   DIR mon|osd|rgw      for kill -STOP (a server that hangs) and kill -CONT
#   s3-server.sh admin DIR ARGUMENT ...     radosgw-admin
#
# TEST SERVER: one copy of the data, and keys that were made for it alone. Never put real data on it.

set -euo pipefail
umask 077

readonly PACKAGES='radosgw ceph-mon ceph-osd openssl'
readonly PROGRAMS='ceph ceph-authtool ceph-mon ceph-osd monmaptool radosgw radosgw-admin openssl'
readonly MARKER=.sluice-s3-server   # proves that a folder is ours before anything in it is removed

say() { printf 's3-server: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
usage() { sed -n '3,/^$/{s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }

# Sets DIR and CONF. Odd characters would change meaning inside ceph.conf.
use_dir() {
  [[ -n ${1:-} ]] || usage
  DIR=$(realpath -m -- "$1")
  [[ $DIR =~ ^/[A-Za-z0-9._/-]+$ && $DIR != / ]] || die "only letters, digits and . _ - / may be in $DIR"
  CONF=$DIR/ceph.conf
  if [[ -d $DIR && ! -e $DIR/$MARKER && -n $(ls -A -- "$DIR") ]]; then
    die "$DIR is not empty and not a test server"
  fi
}

need_dir() {
  use_dir "$@"
  [[ -e $DIR/$MARKER ]] || die "no server in $DIR"
}

# One command at a time per folder. Daemons are started with 9>&- so that they do not keep the lock.
lock_dir() {
  exec 9>"$DIR/.lock"
  flock -w 120 9 || die "another command works on $DIR"
}

missing_programs() {
  local program
  for program in $PROGRAMS; do
    command -v "$program" >/dev/null || printf '%s ' "$program"
  done
}

# pid_of NAME: the process id, only when that process was started from this folder.
pid_of() {
  local pid
  pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) || return 1
  [[ $pid =~ ^[0-9]+$ ]] || return 1
  grep -qzxF -e "$CONF" "/proc/$pid/cmdline" 2>/dev/null || return 1
  printf '%s\n' "$pid"
}

# end NAME SECONDS: SIGTERM, then SIGKILL (0: at once). Fails when it had to be killed.
end() {
  local pid i
  pid=$(pid_of "$1") || { rm -f "$DIR/run/$1.pid"; return 0; }
  if (($2 > 0)); then
    kill -TERM "$pid" 2>/dev/null || true
    kill -CONT "$pid" 2>/dev/null || true   # a stopped process cannot take SIGTERM
    for ((i = 0; i < $2 * 20; i++)); do
      pid_of "$1" >/dev/null || { rm -f "$DIR/run/$1.pid"; return 0; }
      sleep 0.05
    done
  fi
  kill -KILL "$pid" 2>/dev/null || true
  for ((i = 0; i < 200; i++)); do
    pid_of "$1" >/dev/null || { rm -f "$DIR/run/$1.pid"; return 1; }
    sleep 0.05
  done
  die "cannot end $1 ($pid)"
}

# The gateway keeps no state, and often ignores SIGTERM for ten seconds: no long wait.
end_gateway() { end rgw 2 || true; }

# logged NAME COMMAND...: its output goes to a log, of which the end is shown when it fails.
logged() {
  local log=$DIR/log/$1.out
  shift
  if ! "$@" >>"$log" 2>&1 9>&-; then
    tail -n 20 "$log" >&2
    die "failed: $*"
  fi
}

# daemon NAME PROGRAM ARGUMENT...: it goes to the background by itself; its pid file may come a moment later.
daemon() {
  local name=$1 i
  shift
  if pid_of "$name" >/dev/null; then return; fi
  rm -f "$DIR/run/$name.pid"
  logged "$name" timeout 60 "$@" -c "$CONF" --pid-file "$DIR/run/$name.pid" </dev/null
  for ((i = 0; i < 200; i++)); do
    if pid_of "$name" >/dev/null; then return; fi
    sleep 0.05
  done
  tail -n 20 "$DIR/log/$name.out" >&2
  die "$name did not start"
}

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Below the kernel's ephemeral range, where other tests get theirs.
free_port() {
  local port i
  for ((i = 0; i < 200; i++)); do
    port=$((20000 + RANDOM % 12000))
    if port_is_free "$port"; then printf '%s\n' "$port"; return; fi
  done
  die 'no free port'
}

# value SECTION KEY: one line of ceph.conf.
value() { sed -n "/^\[$1\]/,/^\[/s/^$2 = //p" "$CONF"; }

# Written once: the monitor's address is part of the stored state.
write_conf() {
  cat >"$CONF" <<CONF_END
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$(free_port)]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms bind msgr1 = false
keyring = $DIR/keyring
log file = $DIR/log/\$name.log
log to stderr = false
crash dir = $DIR/run
run dir = $DIR/run
admin socket =

[mon]
mon data = $DIR/mon
mon cluster log file = $DIR/log/cluster.log
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 10000
auth allow insecure global id reclaim = false
# The monitor ends itself when the disk is 95 % full otherwise.
mon data avail crit = 1
mon data avail warn = 2
# Commit map changes at once instead of once a second: most of the start time.
paxos propose interval = 0.05
paxos min wait = 0.01
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0

[osd]
osd data = $DIR/osd
osd objectstore = memstore
osd crush initial weight = 1
# A clean end must write the objects to disk.
osd fast shutdown = false
# A full store makes every write hang, without an error: be generous.
memstore device bytes = 8G
osd memory target = 1G
CONF_END
}

# The gateway's part: written anew at each of its starts.
write_gateway_conf() {
  local tls='no_sslv2:no_sslv3:no_tlsv1:no_tlsv1_1:no_tlsv1_2'
  sed -i '/^\[client.rgw\]/,$d' "$CONF"
  cat >>"$CONF" <<CONF_END
[client.rgw]
rgw frontends = beast ssl_endpoint=127.0.0.1:$1 ssl_certificate=$DIR/tls/cert.pem ssl_private_key=$DIR/tls/key.pem ssl_options=$tls tcp_nodelay=1
rgw enable apis = s3, admin, sts, iam
rgw s3 auth use sts = ${S3_STS:-false}
rgw sts key = 0123456789abcdef
rgw thread pool size = 128
rgw relaxed region enforcement = true
rgw dynamic resharding = false
rgw multipart min part size = 5242880
# Deleted data is freed after seconds instead of two hours: it is memory here.
rgw gc obj min wait = 5
rgw gc processor period = 5
rgw gc processor max time = 5
# Several lifecycle workers fight for locks and delay the end of the gateway.
rgw lc max worker = 1
CONF_END
}

make_certificate() {
  local tls=$DIR/tls ec=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256)
  [[ ! -s $tls/cert.pem ]] || return 0
  mkdir -p "$tls"
  logged tls openssl req -x509 "${ec[@]}" -days 30 -subj '/CN=Sluice test store CA' \
    -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign' \
    -keyout "$tls/ca-key.pem" -out "$tls/ca.pem"
  logged tls openssl req "${ec[@]}" -subj '/CN=localhost' -keyout "$tls/key.pem" -out "$tls/request.pem"
  printf '%s\n' 'subjectAltName=DNS:localhost,IP:127.0.0.1' 'basicConstraints=critical,CA:FALSE' \
    'keyUsage=critical,digitalSignature' 'extendedKeyUsage=serverAuth' >"$tls/extensions"
  logged tls openssl x509 -req -in "$tls/request.pem" -CA "$tls/ca.pem" -CAkey "$tls/ca-key.pem" \
    -CAcreateserial -sha256 -days 30 -extfile "$tls/extensions" -out "$tls/cert.pem"
  rm -f "$tls"/{ca-key.pem,request.pem,ca.srl,extensions}
}

# A new store: monitor database, Ceph's own keys, one OSD, one S3 user.
create_storage() {
  local keyring=$DIR/keyring uuid
  end osd 0 || true
  end mon 0 || true
  rm -rf "$DIR"/{mon,osd,keyring,ceph.conf}
  mkdir -p "$DIR"/{mon,osd}
  write_conf
  logged create ceph-authtool --create-keyring "$keyring" --gen-key -n mon. --cap mon 'allow *'
  logged create ceph-authtool "$keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
  logged create ceph-authtool "$keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
  logged create ceph-authtool "$keyring" --gen-key -n client.rgw --cap mon 'allow rw' --cap osd 'allow rwx'
  logged create monmaptool --create --clobber --fsid "$(value global fsid)" \
    --addv a "$(value global 'mon host')" "$DIR/run/monmap"
  logged create ceph-mon -c "$CONF" --mkfs -i a --monmap "$DIR/run/monmap" --keyring "$keyring"
  daemon mon ceph-mon -i a
  uuid=$(cat /proc/sys/kernel/random/uuid)
  logged create timeout 60 ceph -c "$CONF" osd new "$uuid" 0
  logged create timeout 60 ceph-osd -c "$CONF" -i 0 --mkfs --osd-uuid "$uuid"
  daemon osd ceph-osd -i 0
  local access secret
  access=$(openssl rand -hex 10)
  secret=$(openssl rand -hex 20)
  logged user timeout 120 radosgw-admin -c "$CONF" user create --uid=test --display-name=test --caps='roles=*;user-policy=*' \
    --access-key="$access" --secret-key="$secret"
  # The form of ~/.aws/credentials, which every S3 tool reads.
  printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$access" "$secret" >"$DIR/credentials.new"
  mv "$DIR/credentials.new" "$DIR/credentials"
}

# One anonymous request for the bucket list: S3 answers it with 200.
answers() {
  local answer
  answer=$(printf 'GET / HTTP/1.0\r\nHost: localhost\r\n\r\n' |
    timeout 5 openssl s_client -quiet -CAfile "$DIR/tls/ca.pem" -connect "127.0.0.1:$1" 2>/dev/null) || true
  [[ $answer == HTTP/1.?\ 200\ * ]]
}

# The secret stays in its file: the line names only where it is.
print_env() {
  printf 'S3_ENDPOINT=%s\n' "$(cat "$DIR/endpoint")"
  printf 'S3_CA_FILE=%s\nS3_CREDENTIALS_FILE=%s\n' "$DIR/tls/ca.pem" "$DIR/credentials"
}

# A start that failed must leave no daemon behind.
end_after_failure() {
  local status=$?
  if ((status != 0)); then
    end_gateway
    end osd 5 || true
    end mon 5 || true
  fi
  exit "$status"
}

up() {
  use_dir "${1:-}"
  local port=${2:-0} missing i
  [[ $port =~ ^[0-9]{1,5}$ ]] || usage
  missing=$(missing_programs)
  [[ -z $missing ]] || die "missing: ${missing}(apt-get install --no-install-recommends $PACKAGES)"
  mkdir -p "$DIR"
  : >>"$DIR/$MARKER"
  lock_dir
  mkdir -p "$DIR"/{run,log}
  if pid_of rgw >/dev/null && pid_of osd >/dev/null && pid_of mon >/dev/null; then
    print_env
    return
  fi
  trap end_after_failure EXIT
  end_gateway
  # Objects died with their process unless it saved them: then the store starts empty.
  if [[ -e $DIR/credentials ]] && { pid_of osd >/dev/null || [[ -e $DIR/run/clean ]]; }; then
    daemon mon ceph-mon -i a
    daemon osd ceph-osd -i 0
  else
    create_storage
  fi
  rm -f "$DIR/run/clean"
  make_certificate
  if ((port == 0)); then port=$(free_port); fi
  port_is_free "$port" || die "port $port is in use"
  write_gateway_conf "$port"
  printf 'https://127.0.0.1:%s\n' "$port" >"$DIR/endpoint"
  daemon rgw radosgw -n client.rgw
  for ((i = 0; i < 600; i++)); do
    if answers "$port"; then
      print_env
      return
    fi
    pid_of rgw >/dev/null || { tail -n 20 "$DIR/log/client.rgw.log" >&2; die 'the gateway ended'; }
    sleep 0.05
  done
  die 'no answer in 30 s'
}

down() {
  need_dir "${1:-}"
  lock_dir
  end_gateway
  case ${2:-} in
    --gateway) ;;
    --purge)
      end osd 0 || true
      end mon 0 || true
      rm -rf -- "$DIR"
      ;;
    '')
      # The OSD tells the monitor that it ends, so it goes first. Saving the objects can take a while.
      if pid_of osd >/dev/null && end osd 300; then : >"$DIR/run/clean"; fi
      end mon 30 || true
      ;;
    *) usage ;;
  esac
}

command=${1:-}
shift || usage
case $command in
  check)
    missing=$(missing_programs)
    [[ -z $missing ]] || die "missing: ${missing}(apt-get install --no-install-recommends $PACKAGES)"
    ;;
  up) up "$@" ;;
  down) down "$@" ;;
  env) need_dir "${1:-}"; print_env ;;
  pid) need_dir "${1:-}"; pid_of "${2:-}" || die "${2:-} does not run" ;;
  admin) need_dir "${1:-}"; shift; timeout 120 radosgw-admin -c "$CONF" "$@" ;;
  *) usage ;;
esac
