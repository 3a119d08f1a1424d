#!/bin/sh
# Verifies a deletion or purge certificate offline, sharing no code with Sluice: POSIX sh, openssl 3, jq 1.6
# or later. Use: verify.sh FILE --trust evidence-public.pem. Exit 0: verified. 3: do not trust it; one line says
# why, with the codes of `sluice verify`. 2: no readable file or key. A report is no certificate: 3.
set -u; export LC_ALL=C
fail() { printf '%s: %s\n' "$1" "$2" >&2; exit "${3:-3}"; }
[ $# -eq 3 ] && [ "$2" = --trust ] || fail usage 'verify.sh FILE --trust KEY' 2
for file in "$1" "$3"; do [ -f "$file" ] && [ -r "$file" ] || fail usage "$file: cannot be read" 2; done
[ "$(head -c 26 "$3" | tr -d '\0')" = '-----BEGIN PUBLIC KEY-----' ] || fail usage 'no public key in PEM' 2
work=$(mktemp -d) || exit 1; trap 'rm -rf "$work"' EXIT; trap 'exit 1' HUP INT TERM
openssl pkey -pubin -in "$3" -outform DER -out "$work/key" 2>/dev/null || fail usage 'no public key in PEM' 2
# Shapes: an object has exactly these members (`?`: or not), a list is [least, most, each]; a text is `int`,
# `bool`, `text` or `b64` with its greatest length, or else a regular expression for the whole string.
# shellcheck disable=SC2016
lib='def no(c; $why): if c then "evidence." + $why else empty end;
def b64: length % 4 == 0 and (.[:-2] | test("[^A-Za-z0-9+/]") | not) and (. == "" or (.[-4:] |
  test("\\A([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=|[A-Za-z0-9+/][AQgw]==)\\z")));
def fits($t): . as $v | $t | if type == "object" then ($v | type) == "object" and ($v | keys) - [keys[] | rtrimstr("?")] == [] and
  all(keys[]; . as $k | rtrimstr("?") as $name | if $v | has($name) then $v[$name] | fits($t[$k]) else $k != $name end) elif type ==
  "array" then ($v | type == "array" and length >= $t[0] and length <= $t[1]) and all($v[]; fits($t[2])) elif . == "int" then ($v | type)
  == "number" and $v >= 0 elif . == "bool" then ($v | type) == "boolean" elif ($v | type) != "string" then false elif startswith("text")
  then ($v | length) <= ($t[4:] | tonumber) elif startswith("b64") then ($v | b64) and ($v | length) <= ($t[3:] | tonumber) else $t as $re
  | $v | test("\\A(" + $re + ")\\z") end;
def id: "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"; def sha: "[0-9a-f]{64}";
def own: ["object-store", "object-replica", "job-key", "result-blob"];
def holder: {kind: "capture-spool|gpu-lease|object-(store|replica)|job-key|result-blob", id: "\(id)|\(sha)", "place?": "[a-z0-9][a-z0-9-]{0,31}"};
def envelope: {payload: "b6489478490", payloadType: ("application/vnd\\.sluice\\.(receipt|result|" +
  "deletion-certificate|purge-(receipt|certificate|report|bundle)|write-off)\\.v1\\+json"), signatures: [1, 1, {keyid: sha, sig: "b6488"}]};
def each_is($t): split(" ") | map({key: ., value: $t}) | from_entries;
def signer: {keyId: sha, publicKey: "b64128", holderId: "\(id)|\(sha)"} + ("notBeforeMs? notAfterMs? revokedAtMs?" | each_is("int"));
def statement($about; $type; $predicate): fits({_type: "https://in-toto\\.io/Statement/v1", subject: [1, 1, {name: "\($about):\(id)",
  digest: {sha256: sha}}], predicateType: "urn:sluice:\($type):1", predicate: $predicate});
def certificate: {level: "Purge|Clear|none", levelReason: "text500", exclusions: [8, 64, "text500"]} +
  ("intentAtMs keysUnusableAtMs keysUnrecoverableAtMs objectsAbsentAtMs" | each_is("int"));
def job_shape: statement("job"; "deletion-certificate"; certificate + {jobId: id, site: "text128", leases: [0, 9e9, {leaseId: id, fence: "int", nodeId:
  id}], holders: [3, 1024, {obligationId: id, holder: holder, "leaseId?": id, confirmedAtMs: "int", receiptSha256: sha}], receipts: [3, 1024, envelope],
  signers: [1, 1024, signer]} + ("announcedAtMs issuedAtMs" | each_is("int"))) and all(.predicate.leases[]; .fence > 0);
def scope_shape: {job: {jobId: id}, agent: {agentId: id}, site: {site: "text128"}, label: {key: "text64", value: "text64"}, store: {store:
  "directory|s3"}, time: {fromMs: "int", untilMs: "int"}, everything: {}};
def purge_shape: statement("purge"; "purge-certificate"; certificate + {scope: ((.predicate.scope? | .kind?) as $kind | scope_shape | if has("\($kind)")
  then .["\($kind)"] + {kind: "\($kind)"} else "int" end), site: "text128", "approvedBy?": id, includingHeld: "bool", breakGlass: "bool", heldSkipped:
  {count: "int", jobIds: [0, 1000, id]}, unasked: {count: "int", agentIds: [0, 1000, id]}, agents: [0, 16384, {agentId: id, obligationId: id,
  everything: "bool", orderSha256: sha, confirmedAtMs: "int", receiptSha256: sha}], receipts: [0, 16384, envelope], signers: [0, 16384, signer], jobs:
  [0, 100000, {jobId: id, certificateSha256: sha}]} + ("requestedAtMs ordersDurableAtMs concludedAtMs jobsCount" | each_is("int")) +
  ("reasonSha256 jobsSha256 certificatesSha256" | each_is(sha)) + ("purgeId requestedBy" | each_is(id))) and all(.predicate | .site, (.scope | .site?,
  .key?, .value?); . != "") and (.predicate.scope | .kind != "time" or .fromMs < .untilMs); def disordered: . != sort;
def twice: length != (unique | length);
def unlisted: no(["copies made outside the system, such as screenshots or results derived from the media", "results delivered to the capture host",
  "the source file and the disk it was captured on", "memory of graphics processors and other devices", "snapshots or migrations by a hypervisor",
  "backups and disk images made by others; this version makes no backups and keeps no caches", (.unasked.count // 0 | select(. > 0) |
  "what lies on the revoked hosts it names as unasked; the keys of what they never announced are gone"),
  "copies of the database that upgrades leave; in them the keys are wrapped by destroyed epoch keys",
  "pages freed by the operating system that were not overwritten yet"] - .exclusions != []; "incomplete: an exclusion is missing");
def at(of): to_entries | reverse | map({key: (.value | of), value: .key}) | from_entries;
def signers($holders): (.signers | at(.holderId) as $names | at(.keyId) as $keys | range(length) as $i | .[$i] as $s | no(($s.publicKey |
  startswith("MCowBQYDK2VwAyEA") and length == 60 | not) or $ids[$i] != $s.keyId or $names[$s.holderId] != $i or $keys[$s.keyId] != $i;
  "invalid: a signer twice, or under a wrong id"), no(($s.holderId == $ENV.trusted) != ($s.keyId == $ENV.trusted);
  "untrusted: a signer uses the name of another"), ([$s.notBeforeMs, $s.notAfterMs] as [$from, $until] | no(if $s.keyId == $ENV.trusted then [$from,
  $until, $s.revokedAtMs] != [null, null, null] else $from == null or $until == null or $until <= $from end;
  "invalid: a signer without a time, or the evidence key with one"))), no([.signers[].holderId] - $holders != []; "invalid: a signer holds nothing");
def judge_job: .subject[0].name as $name | .predicate | . as $p | .holders as $held | no($name != "job:" + .jobId or ([.announcedAtMs, .intentAtMs,
  .keysUnusableAtMs, .keysUnrecoverableAtMs, .issuedAtMs] | disordered) or ([.intentAtMs, .objectsAbsentAtMs, .issuedAtMs] | disordered) or any($held[];
  [$p.announcedAtMs, .confirmedAtMs, $p.issuedAtMs] | disordered); "invalid: two jobs, or times in disorder"), unlisted, signers([$held[].holder.id]),
  no(any([$held[].obligationId], [.leases[].leaseId], [.leases[].fence]; twice); "invalid: something is listed twice"), no(["capture-spool",
  "object-store", "job-key"] - [$held[].holder.kind] != []; "incomplete: a holder is missing"), no([.leases[].leaseId] - [$held[].leaseId] != [];
  "incomplete: a lease was never confirmed"), no([$held[] | .leaseId // "\(.holder.kind) \(.holder.place)"] | twice;
  "invalid: a holder is listed twice"), ($held[] | .leaseId as $lease | .holder as {$kind, $place} | no((own - [$kind] != own) != (.holder.id ==
  $ENV.trusted); "untrusted: a holder is spoken for by another"), no(($kind == "object-replica") != ($place != null) or ($kind == "gpu-lease") !=
  ($lease != null) or ($lease != null and [$p.leases[] | select(.leaseId == $lease) | .nodeId] != [.holder.id]);
  "invalid: a lease or a place and its holder do not fit"));
def judge_purge: .subject[0] as $about | .predicate | . as $p | no($about != {name: "purge:\(.purgeId)", digest: {sha256: $ENV.scopeSha256}} or
  .approvedBy == .requestedBy or ([.requestedAtMs, .intentAtMs, .keysUnusableAtMs, .keysUnrecoverableAtMs, .concludedAtMs] | disordered) or
  any(.ordersDurableAtMs, .objectsAbsentAtMs, .agents[].confirmedAtMs; [$p.intentAtMs, ., $p.concludedAtMs] | disordered);
  "invalid: another purge, one person alone, or times in disorder"), no(.includingHeld and .approvedBy == null;
  "incomplete: held jobs take a second person"), no(.includingHeld and .heldSkipped.count > 0; "invalid: held jobs are both skipped and included"),
  no((.heldSkipped.jobIds | length) != ([.heldSkipped.count, 1000] | min); "incomplete: held jobs are not named"), (.unasked | .agentIds as $ids |
  no(($ids | length) != ([.count, 1000] | min); "incomplete: hosts are not named"), no(($ids | twice) or any($p.agents[].agentId; [.] - $ids == []);
  "invalid: an unasked host twice, or asked")), unlisted, (if .jobsCount > 100000 and .jobs == [] then empty else no((.jobs | length) != .jobsCount;
  "incomplete: a job has no certificate"), no(([.jobs[].jobId] | . != unique) or $ENV.jobsSha256 != .jobsSha256 or $ENV.certificatesSha256 !=
  .certificatesSha256; "invalid: its jobs are not those it names") end), signers([.agents[].agentId]), no([.agents[].obligationId] | twice;
  "invalid: an obligation is listed twice");
def receipt_shape: ({obligationId: id, checked: [1, 16, "text128"], startedAtMs: "int", wipedAtMs: "int"}) as $both | if .predicateType ==
  "urn:sluice:receipt:1" then statement("job"; "receipt"; $both + {jobId: id, holder: holder, "leaseId?": id, "fence?": "int", "isolation?":
  "bubblewrap|none", method: "text99", "memoryLevel?": "no-swap|tmpfs-noswap|cgroup-swap-max-0|ramfs|swap-allowed"}) else statement("purge";
  "purge-receipt"; $both + {purgeId: id, agentId: id, everything: "bool"} + ("spoolsWiped draftsWiped leasesEnded resultsWiped" | each_is("int"))) end;
def receipts: .predicate as $p | ($p.holders // $p.agents) as $all | ($p.signers | map({key: .holderId, value: .}) | from_entries) as $by | range($all |
  length) as $i | $all[$i] as $h | $by[$h.agentId // $h.holder.id] as $s | $p.receipts[$i] as $one | [first(no($one == null;
  "incomplete: a holder has no receipt"), no($s == null; "incomplete: the signer of a receipt is not listed"), no($h.confirmedAtMs < ($s.notBeforeMs //
  0) or $h.confirmedAtMs >= ($s.notAfterMs // 9e99) or $h.confirmedAtMs >= ($s.revokedAtMs // 9e99); "untrusted: a signer was expired or revoked"),
  no($one.payloadType != $ENV.type; "invalid: a receipt is none"), "ok"), $h.receiptSha256, $s.publicKey, $s.keyId, ($one | .signatures[0] | .keyid,
  .sig), $one.payload] | join("|");
def wanted: .subject[0].digest.sha256 as $header | .predicate as $p | ($p.leases // [] | map({key: .leaseId, value: .fence}) | from_entries) as $fences
  | ($p.holders // $p.agents)[] | if .agentId then {purgeId: $p.purgeId, header: .orderSha256, agentId, obligationId, everything} else {jobId: $p.jobId,
  $header, obligationId, holder, leaseId, fence: $fences["\(.leaseId)"]} end;
def answers($want): .subject[0] as $about | .predicate | (. + {header: $about.digest.sha256}) as $said | .holder.kind as $kind | all($want |
  to_entries[]; .value == $said[.key]) and .startedAtMs <= .wipedAtMs and $about.name == (if .jobId then "job:\(.jobId)" else "purge:\(.purgeId)" end)
  and ($kind == null or .method == ({"capture-spool": "unlink", "gpu-lease": "process-exit", "job-key": "epoch-roll"}[$kind] // "object-delete") or
  (.method == "never-held" and own - [$kind] == own));
def conclusion: [wanted] as $wanted | first(no(any(range($said | length); . as $i | $said[$i] | (receipt_shape and answers($wanted[$i]))? // false |
  not); "invalid: a receipt speaks for something else"), ($ENV.problem | select(. != "")), (.predicate | no((.receipts | length) != ($wanted | length);
  "invalid: a receipt has no holder")), "verified: \(.subject[0].name), level \(.predicate.level), not claimed:\n" + (.predicate.exclusions | map("- " +
  .) | join("\n")));
'
export trusted='' type='' scopeSha256='' jobsSha256='' certificatesSha256='' problem='' # jq has them as $ENV.trusted …
: >"$work/ids"; : >"$work/statements"; ask() { jq -rcS --slurpfile ids "$work/ids" --slurpfile said "$work/statements" "$lib $2" "$1" 2>/dev/null; }
sha256() { openssl dgst -sha256 -r | cut -c 1-64; }; told() { fail "${1%%: *}" "${1#*: }"; }
one_line() { cat "$1" && echo && [ "$(wc -l <"$1")" -eq 0 ]; } # FILE: it, ended by a line feed; whether that is its only one
canonical() { # FILE: whether each line is byte for byte what RFC 8785 makes of it (jq 1.6 escapes DEL, RFC 8785 does not)
  tr '\177' x <"$1" >"$work/plain"
  jq -cS 'if ([paths | length] | max // 0) <= 32 and all(.. | numbers; . <= 9007199254740991 and . >= -9007199254740991 and
    (tostring | test("\\A(0|-?[1-9][0-9]*)\\z"))) then . else error("") end' "$work/plain" 2>/dev/null | cmp -s - "$work/plain"; }
signed() { # TYPE KEY SIGNATURE: whether that key signed $work/said as that
  printf %s "$3" | openssl base64 -d -A >"$work/signature"
  { printf 'DSSEv1 %d %s %d ' ${#1} "$1" "$(wc -c <"$work/said")" && cat "$work/said"; } >"$work/bytes"
  openssl pkeyutl -verify -pubin -inkey "$2" -rawin -in "$work/bytes" -sigfile "$work/signature" >/dev/null 2>&1; }
bytes=$(wc -c <"$1"); [ "$bytes" -le 67108864 ] || fail evidence.invalid 'too large'
one_line "$1" >"$work/envelope" && canonical "$work/envelope" || fail evidence.not_canonical 'not JSON in its canonical form'
ask "$work/envelope" 'if fits(envelope) then ([.payloadType, .signatures[0].keyid, .signatures[0].sig] | join("|")), .payload else error("") end' \
  >"$work/head" || fail evidence.invalid 'not a signed document'
IFS='|' read -r type keyid signature <"$work/head"; kind=${type#application/vnd.sluice.}; kind=${kind%.v1+json}
case $kind in
  deletion-certificate) name=job receipt=receipt ;; purge-certificate) name=purge receipt=purge-receipt ;;
  purge-report | write-off) name=report ;; *) fail evidence.invalid 'neither a certificate nor a report' ;;
esac
[ "$bytes" -le 8388608 ] || [ "${kind%%-*}" = purge ] || fail evidence.invalid 'too large'
trusted=$(sha256 <"$work/key"); sed 1d "$work/head" | openssl base64 -d -A >"$work/said"
case $(openssl base64 -A -in "$work/key") in MCowBQYDK2VwAyEA*) [ "$keyid" = "$trusted" ] ;; *) false ;; esac &&
  signed "$type" "$3" "$signature" || fail evidence.untrusted 'signed by another key, or not at all'
one_line "$work/said" >"$work/doc" && canonical "$work/doc" || fail evidence.not_canonical 'what is signed is not canonical'
[ $name != report ] || fail evidence.incomplete "this is a $kind, not a certificate"
ask "$work/doc" "if ${name}_shape then .predicate else error(\"\") end | {jobsSha256, scope}, (.jobs[]? | \"job \(.jobId)\",
  \"both \(.jobId) \(.certificateSha256)\"), \"key \(.signers[].publicKey)\"" >"$work/named" || fail evidence.invalid "not a $kind"
sed -n 's/^key //p' "$work/named" | while read -r key; do printf %s "$key" | openssl base64 -d -A | sha256; done | sed 's/.*/"&"/' >"$work/ids"
scopeSha256=$(sed -n '/^{/p' "$work/named" | tr -d '\n' | sha256); jobsSha256=$(sed -n 's/^job //p' "$work/named" | sha256)
certificatesSha256=$(sed -n 's/^both //p' "$work/named" | sha256); type=application/vnd.sluice.$receipt.v1+json
ask "$work/doc" "first(judge_$name, \"ok\"), receipts" >"$work/judged" || fail evidence.invalid 'it cannot be judged'
{ read -r verdict; [ "$verdict" = ok ] || told "$verdict"
  while [ -z "$problem" ] && IFS='|' read -r problem sha key id keyid signature payload; do
    [ "$problem" = ok ] || break; printf %s "$payload" | openssl base64 -d -A >"$work/said"
    printf -- '-----BEGIN PUBLIC KEY-----\n%s\n-----END PUBLIC KEY-----\n' "$key" >"$work/signer"
    problem='evidence.invalid: not the receipt that was confirmed'; [ "$(sha256 <"$work/said")" = "$sha" ] || break
    problem='evidence.untrusted: signed by another key'; [ "$keyid" = "$id" ] && signed "$type" "$work/signer" "$signature" || break
    problem='evidence.not_canonical: a receipt is not canonical'; one_line "$work/said" >"$work/one" || break
    problem=''; cat "$work/one" >>"$work/statements"; done; } <"$work/judged"
canonical "$work/statements" || { # Only those before the first that is not are judged.
  mv "$work/statements" "$work/all"; : >"$work/statements"; problem='evidence.not_canonical: a receipt is not canonical'
  while IFS= read -r line && printf '%s\n' "$line" >"$work/one" && canonical "$work/one"; do
    cat "$work/one" >>"$work/statements"; done <"$work/all"; }
verdict=$(ask "$work/doc" conclusion) || fail evidence.invalid 'its receipts cannot be judged'
case $verdict in verified:*) printf '%s\n' "$verdict" ;; *) told "$verdict" ;; esac
