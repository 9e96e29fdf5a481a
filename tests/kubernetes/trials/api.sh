# Sourced by hack/kubernetes: trouble with the API server, and with who asks it.

leads_now() { local was; was=$(renewed); sleep 7; [ -n "$was" ] && [ "$(renewed)" != "$was" ]; }
renewed() { kubectl -n cleat-system get lease cleat-controller -o jsonpath='{.spec.renewTime}' 2>/dev/null; }
api_gone() { ! ready 2>/dev/null; }

etcd_asked() { inside curl -sf -d "$2" "http://127.0.0.1:12379/v3/$1" || die "etcd does not answer to $1"; } # CALL BODY
etcd_revision() { etcd_asked maintenance/status '{}' | sed -n 's/.*"revision": *"\([0-9]*\)".*/\1/p'; }
# etcd forgets all versions but the last: who goes on watching from an earlier one is refused.
compacted() {
    local revision; revision=$(etcd_revision)
    etcd_asked kv/compaction "{\"revision\":\"$revision\",\"physical\":true}" >/dev/null
    say "etcd has nothing from before its revision $revision"
}

# The leader ends, nobody is fenced, and everything goes on; what was watched from before is compacted away.
trial_api_away() { # [SECONDS]
    writing
    local id before times; id=$(cat "$cluster/started/apiserver") before=$(leader) times=$(restarts "$(leader)")
    [ "$(readlink "/proc/$id/cwd")" = "$cluster" ] || die 'the API server is not where it was started'
    [ -n "$(etcd_revision)" ] || die 'etcd does not say its revision'
    say "the API server is away for ${1:-60} s"
    kill -9 -- "-$id"
    until_true 20 'the API server not' api_gone
    compacted
    sleep "${1:-60}"
    api_server
    until_true 120 'the API server' ready
    until_true 180 'the end of the old leader' restarted "$before" "$times"
    until_true 180 'a leader that writes' leads_now
    goes_on 60; nobody_fenced 'the API server was away'
    until_true 300 'two controllers' both_ready
    kubectl delete pod writes --timeout=120s >&2
    until_true 120 'a detach' nothing_attached
    writing; goes_on 60; no_pod
}

control_plane_ends() {
    local name id
    for name in scheduler controller-manager apiserver etcd; do
        id=$(cat "$cluster/started/$name")
        [ "$(readlink "/proc/$id/cwd")" = "$cluster" ] || die "$name is not where it was started"
        kill -9 -- "-$id"
    done
    until_true 20 'the API server not' api_gone
}
control_plane_again() {
    etcd_server; api_server
    until_true 120 'the API server' ready
    scheduler; controller_manager
    until_true 180 'a leader that writes' leads_now
}
other_write() { local now; now=$(last_write "$1") && [ -n "$now" ] && [ "$now" != "$2" ]; } # NODE NUMBER

# etcd is set back to before the pod went to another node, as by a restore of an older snapshot: the API says that the first node has
# the volume, and the other one writes to it. Once a write of the first is seen again, none of the other lands any more. The controllers
# end by themselves; what watches is begun again besides, as Kubernetes asks for after a restore.
trial_etcd_set_back() {
    local from volume file at_proof first was leader times older=$cluster/api/etcd-older
    kubectl cordon node-b >&2; demo_writes; kubectl uncordon node-b >&2
    first=$from
    control_plane_ends; cp -a "$cluster/api/etcd" "$older"; control_plane_again
    kubectl cordon "$first" >&2; kubectl delete pod -l app=demo --timeout=120s >&2
    until_true 300 'the pod elsewhere' runs_on_another "$first"
    from=$(demo_pod); until_true 120 "a write on $from" has_written "$from"
    was=$(last_write "$first") leader=$(leader); times=$(restarts "$leader")
    control_plane_ends; rm -r "$cluster/api/etcd"; mv "$older" "$cluster/api/etcd"
    say "etcd is set back: it says that $first has the volume, and $from writes to it"
    control_plane_again
    until_true 120 'the end of the leader' restarted "$leader" "$times"
    kubectl -n cleat-system rollout restart deployment/cleat-controller >&2
    kubelet_again node-a; kubelet_again node-b
    until_true 600 "a write on $first" wrote_after_all
    came_back
}
# The other node's last write is read before each look at the first one's: a container takes longer to start than a look, so that what
# the other one writes after its proof is found.
wrote_after_all() { at_proof=$(last_write "$from"); other_write "$first" "$was"; }

behind_slow_etcd() { # MS: the API server again, with an etcd that takes so long for each call; 0: as before
    local id; id=$(cat "$cluster/started/apiserver")
    [ "$(readlink "/proc/$id/cwd")" = "$cluster" ] || die 'the API server is not where it was started'
    kill -9 -- "-$id"
    etcd=http://127.0.0.1:12379
    if [ "$1" != 0 ]; then
        start slow "$built/rig" host "$(cat "$cluster/run")" -- python3 "$here/slow.py" 12389 12379 "$1"
        etcd=http://127.0.0.1:12389
    fi
    until_true 20 'the API server not' api_gone
    api_server
    until_true 120 'the API server' ready
}

# Each call of the API server to etcd takes longer: slower, and nothing else.
trial_slow_etcd() { # [MS]
    local before began
    writing
    behind_slow_etcd "${1:-200}"
    until_true 180 'a leader that writes' leads_now
    before=$(leader); goes_on 60; no_pod
    began=$SECONDS; writing; say "a pod with its volume after $((SECONDS - began)) s"
    goes_on 60
    began=$SECONDS; no_pod; say "gone after $((SECONDS - began)) s"
    leads_now && [ "$(leader)" = "$before" ] || die "$before does not lead any more"
    behind_slow_etcd 0
    kill -- "-$(cat "$cluster/started/slow")"; rm "$cluster/started/slow"
    until_true 180 'a leader that writes' leads_now
    until_true 240 'two controllers' both_ready
}

rds_control() { # METHOD WHAT [BODY]: what the simulated RDS is asked by tests
    inside curl -sf -X "$1" -H 'Content-Type: application/json' ${3:+-d "$3"} "http://10.77.3.1:8081/$2" || die "the RDS does not take $1 $2"
}
rds_faults() { rds_control "$1" faults "${2:-}" >/dev/null; } # METHOD [BODY]
# How many changes the RDS was asked for from that address. The RDS sees the addresses of pods: nothing masquerades them.
changes_by() { # ADDRESS
    rds_control GET requests | python3 -c 'import json, sys
asked = json.load(sys.stdin)["by_source"].get(sys.argv[1], {})
print(sum(number for what, number in asked.items() if not what.startswith("GET ")))' "$1"
}

# The first call for a detach runs into its time limit, and the controller-manager is killed before the next: it believes that the
# node still has the volume, and sends the pod back there.
trial_unpublish_times_out() {
    local volume node other id
    writing
    volume=$(volume_of writes) node=$(node_of writes default)
    case $node in node-a) other=node-b ;; *) other=node-a ;; esac
    kubectl cordon "$other" >&2
    rds_faults POST '{"action":"hang"}'
    kubectl delete pod writes --timeout=120s >&2
    until_true 150 'a call for a detach that runs into its time limit' detach_said "$volume"
    say "the detach fails: $(detach_error "$volume")"
    id=$(cat "$cluster/started/controller-manager"); kill -9 -- "-$id"
    kubectl apply -f "$here/pod.yaml" >&2
    controller_manager
    sleep 5
    rds_faults DELETE
    kubectl wait --for=condition=Ready pod/writes --timeout=300s >&2
    [ "$(node_of writes default)" = "$node" ] || die "the pod is not on $node"
    goes_on 60; kubectl uncordon "$other" >&2; nobody_fenced 'a detach took long'; no_pod
}
detach_said() { [ -n "$(detach_error "$1")" ]; } # VOLUME

# The verbs of a role: as they are, or without one of them.
right_of() { # with|without [KIND ROLE RESOURCE VERB]
    local kind name with without
    if [ "$1" = without ]; then
        kubectl -n cleat-system get "$2" "$3" -o json | python3 -c 'import json, sys
rules = json.load(sys.stdin)["rules"]
patch = lambda: print(json.dumps([{"op": "replace", "path": "/rules", "value": rules}]))
print(*sys.argv[1:3]); patch()
for rule in rules:
    if sys.argv[3] in rule.get("resources", []): rule["verbs"] = [verb for verb in rule["verbs"] if verb != sys.argv[4]]
patch()' "${@:2}" >"$cluster/rules"
    fi
    { read -r kind name; read -r with; read -r without; } <"$cluster/rules"
    kubectl -n cleat-system patch "$kind" "$name" --type=json -p "${!1}" >&2
    if [ "$1" = with ]; then rm "$cluster/rules"; fi
}
controllers() { kubectl -n cleat-system get pods -l app.kubernetes.io/component=controller -o jsonpath='{.items[*].metadata.name}'; }
# A controller that says within that time that it lacks the right, and how it does.
says_missing() { # VERB RESOURCE SECONDS
    local pod lines
    for pod in $(controllers); do
        lines=$(kubectl -n cleat-system logs "$pod" -c controller --since="$3s" 2>/dev/null | grep -F "cannot $1 resource" | grep -F "$2" || true)
        [ -z "$lines" ] || { echo "$pod $(tail -n 1 <<<"$lines")"; return; }
    done
}

# A verb is missing while COMMAND is done: a log names it, and no controller ends again and again for it. So many times one may end
# after it has said so, for it cannot lead any more.
lacks() { # KIND ROLE RESOURCE VERB TIMES COMMAND...
    local said='' began=$SECONDS pod times again='' failed=''
    right_of without "${@:1:4}"
    ("${@:6}" >&2) || failed=yes
    until [ -n "$said" ] || [ $((SECONDS - began)) -ge 400 ]; do sleep 3; said=$(says_missing "$4" "$3" $((SECONDS - began))); done
    kubectl -n cleat-system get pods >&2; printf '%s\n' "$said" >&2
    if [ -n "$said" ]; then
        pod=${said%% *}; times=$(restarts "$pod" || echo 0)
        sleep 90
        again=$(($(restarts "$pod" || echo 1000) - times))
    fi
    right_of with
    [ -n "$said" ] || die "no log says that the right to $4 $3 is missing"
    [ -z "$failed" ] || die "without the right to $4 $3, '${*:6}' has failed"
    [ "$again" -le "$5" ] || die "$pod has ended $again times in 90 s without the right to $4 $3: it may $5 times"
    say "without the right to $4 $3: said, and ended $again times in 90 s after that"
    until_true 180 'a leader that writes' leads_now
    kubectl -n cleat-system rollout status deployment/cleat-controller --timeout=400s >&2
}
goes_and_comes() { no_pod; writing; }

# One verb is missing, three times another one: what a start needs, what leading needs, and what nothing needs. A standby needs no
# records, so of the first it is said once both are new, and one of them leads.
trial_missing_right() {
    lacks clusterrole cleat-controller cleatvolumes list 0 kubectl -n cleat-system rollout restart deployment/cleat-controller
    writing
    lacks role cleat-controller leases update 1 leads_no_more
    goes_on 60; nobody_fenced 'nobody led'
    lacks clusterrole cleat-controller events create 0 goes_and_comes
    goes_on 60; no_pod
}
leads_no_more() { until_true 60 'the end of the one that leads' stands_still_now; }
stands_still_now() { local was; was=$(renewed); sleep 7; [ "$(renewed)" = "$was" ]; }
