# Sourced by hack/kubernetes: what may become of the leader.

# Killed with -9 at moments by chance, while 8 volumes go to and fro. The killed pod is replaced, so that what is measured is
# not the time for which the kubelet holds off a container that ends again and again.
trial_cycles() { # [CYCLES]
    local volumes; volumes=$(claims cycles 8)
    cat >"$cluster/kill-leader.sh" <<'K'
set -e
k="$1 --kubeconfig=$2/api/kubeconfig -n cleat-system"
leader=$($k get lease cleat-controller -o jsonpath='{.spec.holderIdentity}' | sed 's/_.*//')
case $($k get pod "$leader" -o jsonpath='{.spec.nodeName}') in node-a) address=10.77.3.11 ;; *) address=10.77.3.12 ;; esac
{ echo '. /run/env'; sed "s/LEADER/$leader/g" "$2/kill"; echo exit; } | socat -t 60 - TCP:$address:2222 | grep KILLED
$k delete pod "$leader" --force --grace-period=0 2>/dev/null
K
    echo "ctr -n k8s.io tasks kill --signal SIGKILL $(controller_of LEADER) && echo KILLED" >"$cluster/kill"
    inside python3 "$here/cycles.py" https://127.0.0.1:16443 admin-token "${1:-50}" "sh $cluster/kill-leader.sh $programs/kubectl $cluster" $volumes
    # shellcheck disable=SC2086 # one argument a volume
    no_claims cycles; gone $volumes
    until_true 240 'two controllers' both_ready
}

# Its sidecars run on and go on calling; another leads meanwhile. Let go, it asks the RDS for nothing more that changes anything, and
# ends by itself: the kubelet is kept from ending it before.
trial_frozen_leader() {
    local before node times said address changes
    kubectl -n cleat-system patch deployment cleat-controller --type=json \
        -p '[{"op":"replace","path":"/spec/template/spec/containers/0/livenessProbe/failureThreshold","value":60}]' >&2
    kubectl -n cleat-system rollout status deployment/cleat-controller --timeout=400s >&2
    until_true 60 'a leader' some_leader
    rds_control DELETE requests # it tells no more than 64 addresses apart, and each pod has another one
    writing
    before=$(leader) node=$(node_of "$(leader)") times=$(restarts "$(leader)")
    say "freezing the leader, $before"
    on_node "$node" "ctr -n k8s.io tasks pause $(controller_of "$before") && echo PAUSED" | grep -q PAUSED || die "$before was not paused"
    address=$(kubectl -n cleat-system get pod "$before" -o jsonpath='{.status.podIP}')
    until_true 60 'another leader' another_leads "$before"
    changes=$(changes_by "$address")
    [ "$changes" -gt 0 ] || die "the RDS does not see that $before ($address) has attached a volume, and so not what it does later"
    # Work for the new one, which the frozen one's sidecars hear of as well.
    kubectl delete pod writes --timeout=120s >&2
    until_true 120 'a detach by the new leader' nothing_attached
    kubectl apply -f "$here/pod.yaml" >&2
    sleep 3
    say 'letting it go, with an attach under way'
    ! restarted "$before" "$times" || die "the kubelet ended $before before it was let go"
    on_node "$node" "ctr -n k8s.io tasks resume $(controller_of "$before" PAUSED) && echo RESUMED" | grep -q RESUMED || die "$before was not let go"
    kubectl wait --for=condition=Ready pod/writes --timeout=180s >&2
    until_true 120 'the end of the one that was frozen' restarted "$before" "$times"
    said=$(kubectl -n cleat-system logs "$before" -c controller --previous --tail=20); tail -n 5 <<<"$said" >&2
    [[ $said =~ Lease\ (was\ (lost|not\ renewed)|is\ another) ]] || die "$before does not say that it lost the Lease"
    another_leads "$before" || die "$before leads again"
    [ "$(changes_by "$address")" = "$changes" ] || die "$before has asked the RDS for changes after it was let go"
    goes_on 60; nobody_fenced 'a leader was frozen'; no_pod
    kubectl -n cleat-system rollout undo deployment/cleat-controller >&2
    kubectl -n cleat-system rollout status deployment/cleat-controller --timeout=400s >&2
    until_true 240 'two controllers' both_ready
}

machine() { # NODE COMMAND [ARGUMENTS]: to its QEMU; stop and cont are of all of it, its clocks too
    { echo '{"execute":"qmp_capabilities"}'; sleep 0.2; echo "{\"execute\":\"$2\"${3:+,\"arguments\":$3}}"; sleep 0.5; } | socat -t 5 - "UNIX-CONNECT:$cluster/$1.qmp" | grep -c '"return"' | grep -q 2 ||
        die "the machine $1 does not $2"
}

# The leader's whole machine stands still in the middle of a detach, and goes on when another leads: no clock in it has seen that.
trial_paused_machine() { # [SECONDS]
    local before node times volume
    until_true 60 'a leader' some_leader
    before=$(leader) node=$(node_of "$(leader)") times=$(restarts "$(leader)")
    kubectl cordon "$node" >&2; writing; kubectl uncordon "$node" >&2
    volume=$(volume_of writes)
    rds_faults POST '{"action":"slow","delay_ms":8000}'
    kubectl delete pod writes --wait=false >&2
    until_true 60 'a call for a detach' going "$volume"
    sleep 2
    say "$node stands still, with the leader $before"
    machine "$node" stop
    until_true 60 'another leader' another_leads "$before"
    rds_faults DELETE
    until_true 180 'a detach by the new leader' nothing_attached
    kubectl apply -f "$here/pod.yaml" >&2
    kubectl wait --for=condition=Ready pod/writes --timeout=240s >&2
    say "$node goes on"
    machine "$node" cont
    until_true 240 'the end of the one that stood still' ended_or_gone "$before" "$times"
    until_true 240 "$node Ready" is_ready "$node"
    goes_on 60; no_pod
    until_true 300 'two controllers' both_ready
}
rds_rest() { # METHOD PATH [BODY]
    inside curl -skf -u cleat:demo-only -X "$1" ${3:+-H 'Content-Type: application/json' -d "$3"} "https://10.77.3.1/rest/$2" || die "the RDS does not answer to $1 $2"
}
disk_of() { # VOLUME: its id at the RDS, and the hosts on its list
    rds_rest GET disk | python3 -c 'import json, sys
for disk in json.load(sys.stdin):
    if sys.argv[1] in json.dumps(disk): print(disk[".id"], disk.get("nvme-tcp-server-allow-host-name", ""))' "${1#pvc-}"
}
list_is() { local id hosts; read -r id hosts < <(disk_of "$1"); [ "$(tr , '\n' <<<"$hosts" | sort)" = "$(tr , '\n' <<<"$2" | sort)" ]; } # VOLUME HOSTS

# What a controller has asked whose machine stood still comes when that goes on, and the RDS takes it: here the worst of it, by
# hand. A node is on the list that nobody has let in, and who has the volume is not.
trial_late_request() {
    local volume id hosts other nqn
    writing
    volume=$(volume_of writes)
    case $(node_of writes default) in node-a) other=node-b ;; *) other=node-a ;; esac
    nqn=$(kubectl get cleatnode "$other" -o jsonpath='{.spec.record.identity.hostNqn}')
    read -r id hosts < <(disk_of "$volume")
    [ -n "$id" ] && [ -n "$nqn" ] && [[ $hosts == *nobody* ]] && [[ $hosts != *"$nqn"* ]] || die "the list of $volume is not as it should be: $hosts"
    sleep 35 # the leader's own requests count as under way for a while
    rds_rest PATCH "disk/$id" "{\"nvme-tcp-server-allow-host-name\":\"$nqn,$(tr , '\n' <<<"$hosts" | grep nobody)\"}" >/dev/null
    ! list_is "$volume" "$hosts" || die 'the list was not changed'
    until_true 120 "the list of $volume as it was" list_is "$volume" "$hosts"
    kubectl get events -A --field-selector=reason=DriftFound --no-headers | grep -F "$volume" >&2 || die "no Event says that $volume had a host that nobody has let in"
    goes_on 60; no_pod
}

ended_or_gone() { ! kubectl -n cleat-system get pod "$1" >/dev/null 2>&1 || restarted "$1" "$2"; } # POD RESTARTS
