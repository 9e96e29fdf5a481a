# Sourced by hack/kubernetes: what goes wrong in clusters, each by itself, against the cluster that is up.

trial_names=(cycles frozen-leader api-away registry-wiped records-removed missing-right drain)

# Claims with volumes, and the names of their PersistentVolumes.
claims() { # LABEL NUMBER
    local number
    for number in $(seq "$2"); do
        printf 'apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: %s-%s, labels: {app: %s}}\nspec:\n' "$1" "$number" "$1"
        printf '  {accessModes: [ReadWriteOnce], volumeMode: Block, storageClassName: cleat, resources: {requests: {storage: 64Mi}}}\n---\n'
    done | kubectl apply -f - >&2
    kubectl wait --for=jsonpath='{.status.phase}'=Bound pvc -l "app=$1" --timeout=300s >/dev/null
    local names; names=$(kubectl get pvc -l "app=$1" -o jsonpath='{.items[*].spec.volumeName}')
    [ "$(wc -w <<<"$names")" = "$2" ] || die "not all $2 claims have a volume"
    echo "$names"
}
no_claims() { kubectl delete pvc -l "app=$1" --timeout=300s >/dev/null; } # LABEL

# What a node's shell makes the id of that pod's controller of: the container that runs, not one that has ended.
controller_of() { # POD [STATE]
    echo "\$(for c in \$(ctr -n k8s.io containers ls -q 'labels.\"io.kubernetes.pod.name\"==$1,labels.\"io.kubernetes.container.name\"==controller'); do
        ctr -n k8s.io tasks ls | grep -q \"^\$c .*${2:-RUNNING}\" && echo \$c; done)"
}
node_of() { kubectl -n "${2:-cleat-system}" get pod "$1" -o jsonpath='{.spec.nodeName}'; } # POD [NAMESPACE]
some_leader() { [ -n "$(leader)" ] && kubectl -n cleat-system get pod "$(leader)" >/dev/null 2>&1; }
both_ready() { [ "$(kubectl -n cleat-system get deployment cleat-controller -o jsonpath='{.status.readyReplicas}')" = 2 ]; }
restarts() { kubectl -n cleat-system get pod "$1" -o jsonpath='{.status.containerStatuses[?(@.name=="controller")].restartCount}'; } # POD
restarted() { [ "$(restarts "$1")" -gt "$2" ]; } # POD BEFORE
nobody_fenced() { # WHY
    local fenced; fenced=$(kubectl get cleatvolumes -o jsonpath='{range .items[*]}{.spec.record.fenced[*].node}{end}')
    [ -z "$fenced" ] || die "a node was fenced because $1: $fenced"
    fenced=$(kubectl get events -A --field-selector=reason=FenceStarted --no-headers 2>/dev/null | grep "$(kubectl get pvc writes -o jsonpath='{.spec.volumeName}')" || true)
    [ -z "$fenced" ] || die "a fence was begun because $1: $fenced"
}

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
    inside python3 "$here/trials.py" https://127.0.0.1:16443 admin-token "${1:-5}" "sh $cluster/kill-leader.sh $programs/kubectl $cluster" $volumes
    no_claims cycles
    until_true 240 'two controllers' both_ready
}

# Its sidecars run on and go on calling; another leads meanwhile. Let go, it does nothing more, and ends by itself: the kubelet
# is kept from ending it before.
trial_frozen_leader() {
    local before node times
    kubectl -n cleat-system patch deployment cleat-controller --type=json \
        -p '[{"op":"replace","path":"/spec/template/spec/containers/0/livenessProbe/failureThreshold","value":60}]' >&2
    kubectl -n cleat-system rollout status deployment/cleat-controller --timeout=400s >&2
    until_true 60 'a leader' some_leader
    writing
    before=$(leader) node=$(node_of "$(leader)") times=$(restarts "$(leader)")
    say "freezing the leader, $before"
    on_node "$node" "ctr -n k8s.io tasks pause $(controller_of "$before") && echo PAUSED" | grep -q PAUSED || die "$before was not paused"
    until_true 60 'another leader' another_leads "$before"
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
    kubectl -n cleat-system logs "$before" -c controller --previous --tail=5 | tee /dev/stderr | grep -q Lease || die "$before does not say that it lost the Lease"
    another_leads "$before" || die "$before leads again"
    goes_on 60; nobody_fenced 'a leader was frozen'; no_pod
    kubectl -n cleat-system rollout undo deployment/cleat-controller >&2
    kubectl -n cleat-system rollout status deployment/cleat-controller --timeout=400s >&2
    until_true 240 'two controllers' both_ready
}

leads_now() { local was; was=$(renewed); sleep 7; [ -n "$was" ] && [ "$(renewed)" != "$was" ]; }
renewed() { kubectl -n cleat-system get lease cleat-controller -o jsonpath='{.spec.renewTime}' 2>/dev/null; }
api_gone() { ! ready 2>/dev/null; }

# The leader ends, nobody is fenced, and everything goes on; what was watched from before is compacted away.
trial_api_away() { # [SECONDS]
    writing
    local id before times; id=$(cat "$cluster/started/apiserver") before=$(leader) times=$(restarts "$(leader)")
    [ "$(readlink "/proc/$id/cwd")" = "$cluster" ] || die 'the API server is not where it was started'
    say "the API server is away for ${1:-60} s"
    kill -9 -- "-$id"
    until_true 20 'the API server not' api_gone
    sleep "${1:-60}"
    api_server --etcd-compaction-interval=10s
    until_true 120 'the API server' ready
    until_true 180 'the end of the old leader' restarted "$before" "$times"
    until_true 180 'a leader that writes' leads_now
    goes_on 60; nobody_fenced 'the API server was away'
    until_true 300 'two controllers' both_ready
    kubectl delete pod writes --timeout=120s >&2
    until_true 120 'a detach' nothing_attached
    sleep 15 # compacted twice
    writing; goes_on 60; no_pod
}

registered() { # AGENT: so often it has said so
    kubectl -n cleat-system logs "$1" | grep -c 'has registered this node' || true
}
registered_again() { [ "$(registered "$1")" -gt "$2" ]; } # AGENT BEFORE

# Somebody empties the folder in which the kubelet finds drivers.
trial_registry_wiped() {
    local agent before
    agent=$(kubectl -n cleat-system get pods -l app.kubernetes.io/component=agent --field-selector=spec.nodeName=node-a -o jsonpath='{.items[0].metadata.name}')
    before=$(registered "$agent")
    on_node node-a 'rm -rf /var/lib/kubelet/plugins_registry/* && echo WIPED' | grep -q WIPED || die 'the folder was not emptied'
    until_true 120 'a new registration of node-a' registered_again "$agent" "$before"
    kubectl cordon node-b >&2
    writing; kubectl uncordon node-b >&2; no_pod
}

record_is() { [ "$(kubectl get cleatvolume "$1" -o jsonpath='{.spec.record.attachments[*].node}' 2>/dev/null)" = "$2" ]; } # VOLUME NODE

# Deleted by hand under a pod that writes, and removed by force: who may write is not forgotten.
trial_records_removed() {
    local volume node
    writing
    node=$(node_of writes default) volume=$(kubectl get pvc writes -o jsonpath='{.spec.volumeName}')
    kubectl delete cleatvolume "$volume" --wait=false >&2
    sleep 2; record_is "$volume" "$node" || die 'the record went while a node may write'
    kubectl patch cleatvolume "$volume" --type=merge -p '{"metadata":{"finalizers":null}}' >&2
    kubectl -n cleat-system delete pod "$(leader)" --wait=false >&2
    until_true 120 'the record that was removed by force' record_is "$volume" "$node"
    goes_on 60; no_pod
    until_true 240 'two controllers' both_ready
}

# One verb of the role is missing: the log names it, and no controller ends again and again for it.
trial_missing_right() {
    local role=cleat-controller before
    kubectl get clusterrole "$role" -o json >"$cluster/role.json"
    before=$(kubectl -n cleat-system get pods -l app.kubernetes.io/component=controller -o jsonpath='{.items[*].metadata.name}')
    python3 - "$cluster/role.json" <<'P' | kubectl apply -f - >&2
import json, sys
role = json.load(open(sys.argv[1]))
for rule in role["rules"]:
    if "cleatvolumes" in rule.get("resources", []): rule["verbs"] = [v for v in rule["verbs"] if v != "list"]
role["metadata"] = {"name": role["metadata"]["name"], "labels": role["metadata"].get("labels", {}), "annotations": role["metadata"].get("annotations", {})}
print(json.dumps(role))
P
    kubectl -n cleat-system rollout restart deployment/cleat-controller >&2
    sleep 60
    kubectl -n cleat-system get pods >&2
    local pods pod said=false again=
    pods=$(kubectl -n cleat-system get pods -l app.kubernetes.io/component=controller -o jsonpath='{.items[*].metadata.name}')
    for pod in $pods; do
        [[ " $before " == *" $pod "* ]] && continue
        if kubectl -n cleat-system logs "$pod" -c controller --tail=200 | grep -F 'cannot list resource' | grep -F cleatvolumes | tail -n 1 >&2; then said=true; fi
        [ "$(restarts "$pod")" -le 2 ] || again=$pod
    done
    python3 - "$cluster/role.json" <<'P' | kubectl apply -f - >&2
import json, sys
role = json.load(open(sys.argv[1]))
for word in ("resourceVersion", "uid", "creationTimestamp", "managedFields"): role["metadata"].pop(word, None)
print(json.dumps(role))
P
    $said || die 'no log says which right is missing'
    [ -z "$again" ] || die "$again restarts again and again"
    kubectl -n cleat-system rollout status deployment/cleat-controller --timeout=400s >&2
}

none_on() { local all; all=$(attachments) && ! grep -q "^$1 " <<<"$all"; } # NODE

# A node with so many pods is drained: all of them run on the other one, and nothing is left behind.
trial_drain() { # [PODS]
    local number pods=${1:-8} began
    claims drain "$pods" >/dev/null
    kubectl cordon node-b >&2
    for number in $(seq "$pods"); do
        sed -n '/^apiVersion: apps/,$p' "$here/demo.yaml" | sed "s/name: demo}/name: drain-$number, labels: {app: drains}}/; s/claimName: demo/claimName: drain-$number/; s/app: demo/app: drain-$number/g"
        echo ---
    done | kubectl apply -f - >&2
    kubectl wait --for=condition=Available deployment -l app=drains --timeout=600s >&2
    kubectl uncordon node-b >&2
    began=$SECONDS
    kubectl drain node-a --ignore-daemonsets --delete-emptydir-data --force --timeout=300s >&2
    until_true 300 'detaches of all' none_on node-a
    kubectl wait --for=condition=Available deployment -l app=drains --timeout=600s >&2
    say "$pods pods run on node-b $((SECONDS - began)) s after the drain began"
    kubectl uncordon node-a >&2
    kubectl delete deployment -l app=drains --timeout=120s >&2; no_claims drain
    until_true 120 'detaches' nothing_attached
    until_true 240 'two controllers' both_ready
}

trial() { # [NAME [NUMBER]]: without a name all of them
    local name names=("${trial_names[@]}") began
    if [ -n "${1:-}" ]; then
        [[ " ${trial_names[*]} " == *" $1 "* ]] || die "no trial is called '$1'; the trials: ${trial_names[*]}"
        names=("$1")
    fi
    for name in "${names[@]}"; do
        began=$SECONDS
        say "trial $name"
        "trial_${name//-/_}" "${@:2}"
        say "trial $name: as it should be ($((SECONDS - began)) s)"
    done
}
