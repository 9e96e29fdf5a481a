# Sourced by hack/kubernetes: what becomes of records by hand. Who may write is not forgotten.

record_is() { [ "$(kubectl get cleatvolume "$1" -o jsonpath='{.spec.record.attachments[*].node}' 2>/dev/null)" = "$2" ]; } # VOLUME NODE
new_leader() { # the one that leads goes, without a crash
    local before; before=$(leader)
    kubectl -n cleat-system delete pod "$before" --wait=false >&2
    until_true 120 'another leader' another_leads "$before"
}

# Deleted by hand under a pod that writes, and removed by force.
trial_records_removed() {
    local volume node
    writing
    node=$(node_of writes default) volume=$(volume_of writes)
    kubectl delete cleatvolume "$volume" --wait=false >&2
    sleep 2; record_is "$volume" "$node" || die 'the record went while a node may write'
    kubectl patch cleatvolume "$volume" --type=merge -p '{"metadata":{"finalizers":null}}' >&2
    new_leader
    until_true 120 'the record that was removed by force' record_is "$volume" "$node"
    goes_on 60; no_pod
    until_true 240 'two controllers' both_ready
}

# Every record is removed by force, of volumes and of nodes, under pods that write on both nodes. It costs time, and nothing else.
trial_all_records_removed() { # [PODS]
    local number=${1:-6} all wanted
    pods records "$number"
    wanted=$(placed); say "before: $wanted"
    all=$(kubectl get cleatvolumes,cleatnodes -o name)
    # shellcheck disable=SC2086 # one argument a record
    kubectl delete $all --wait=false >&2
    for record in $all; do kubectl patch "$record" --type=merge -p '{"metadata":{"finalizers":null}}' >/dev/null 2>&1 || true; done
    new_leader
    until_true 180 'the records of all that is attached' all_recorded
    [ "$(placed)" = "$wanted" ] || die "pods have moved: $wanted before, $(placed) now"
    [ -z "$(kubectl get pods -o jsonpath='{range .items[*]}{.status.containerStatuses[*].restartCount}{"\n"}{end}' | grep -v '^0$')" ] || die 'a write of a pod has failed'
    # And all of it can go elsewhere.
    kubectl drain node-a --ignore-daemonsets --delete-emptydir-data --force --timeout=300s >&2
    until_true 400 'detaches of all' none_on node-a
    all_run records
    kubectl uncordon node-a >&2
    no_pods records
    until_true 240 'two controllers' both_ready
}
placed() { kubectl get pods -o jsonpath='{range .items[*]}{.metadata.labels.app}:{.spec.nodeName}{"\n"}{end}' | sort | paste -sd' '; }
all_recorded() {
    local attached recorded
    attached=$(attachments | awk '{print $2, $1}' | sort)
    recorded=$(kubectl get cleatvolumes -o jsonpath='{range .items[*]}{.metadata.name} {.spec.record.attachments[*].node}{"\n"}{end}' | awk 'NF > 1' | sort)
    [ -n "$attached" ] && [ "$attached" = "$recorded" ]
}

# The node is taken out of a record by hand while its pod writes: the volume is not believed to be free.
trial_record_edited() {
    local volume node before
    writing
    node=$(node_of writes default) volume=$(volume_of writes)
    kubectl patch cleatvolume "$volume" --type=merge -p '{"spec":{"record":{"attachments":[]}}}' >&2
    goes_on 60
    kubectl delete pod writes --timeout=120s >&2
    until_true 120 'a refusal that says so' detach_fails "$volume" 'set aside'
    say "the detach fails: $(detach_error "$volume")"
    new_leader
    until_true 180 'a detach by the new leader' nothing_attached
    writing; goes_on 60; no_pod
    until_true 240 'two controllers' both_ready
}
