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

writes_to_all() { # NODE: to whatever it has (writer.sh)
    on_node "$1" "cat >/run/writer <<'K'
$(cat "$here/writer.sh")
K
(setsid bash /run/writer </dev/null >/dev/null 2>&1 &); echo WRITES" | grep -q WRITES || die "nothing writes on $1"
}
writes_no_more() { on_node "$1" 'rm -f /run/writes; echo ENDED' | grep -q ENDED || die "what writes on $1 was not ended"; } # NODE
nodes_recorded() { [ "$(kubectl get cleatnodes -o jsonpath='{.items[*].metadata.name}')" = 'node-a node-b' ]; }

# Every record is removed by force, of volumes and of nodes, again and again, while 8 volumes go to and fro and are written to; each
# second time the leader goes as well. What is judged is as in the cycles, and that no node writes to a volume that it is off.
trial_records_under_load() { # [CYCLES]
    local volumes node; volumes=$(claims load 8)
    cat >"$cluster/written.sh" <<K
exec "$built/rig" exec $(cat "$cluster/run") rds -- sh -c 'file=\$(find /data/rds -type f -name "*\$1*" | head -n 1)
    for block in 0 1; do dd if="\$file" bs=4096 skip=\$block count=1 2>/dev/null | tr -d "\\0 \\n"; echo; done' written "\${1#pvc-}"
K
    for node in node-a node-b; do writes_to_all "$node"; done
    inside python3 "$here/cycles.py" --written "sh $cluster/written.sh" https://127.0.0.1:16443 admin-token "${1:-6}" \
        "python3 $here/records.py https://127.0.0.1:16443 admin-token" $volumes
    for node in node-a node-b; do writes_no_more "$node"; done
    # The last one may have kept in memory what no record says: now what is stored has to do.
    until_true 60 'a leader' some_leader; new_leader
    until_true 120 'the records of both nodes' nodes_recorded
    # shellcheck disable=SC2086 # one argument a volume
    no_claims load; gone $volumes
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
