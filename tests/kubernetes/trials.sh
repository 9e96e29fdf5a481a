# Sourced by hack/kubernetes: what goes wrong in clusters, each by itself, against the cluster that is up.

trial_names=(cycles frozen-leader paused-machine late-request api-away slow-etcd etcd-set-back missing-right unpublish-times-out records-removed
    all-records-removed records-under-load record-edited conflict registry-wiped power-cycle drain
    node-deleted force-detach force-detach-heard migration upgrade)
for file in "$here"/trials/*.sh; do . "$file"; done

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

# Pods that write, each by a Deployment with a claim of its own; each seldom, as many writers are too much for an emulated node.
pods() { # LABEL NUMBER
    local number
    claims "$1" "$2" >/dev/null
    for number in $(seq "$2"); do
        sed -n '/^apiVersion: apps/,$p' "$here/demo.yaml" |
            sed "s/name: demo}/name: $1-$number, labels: {app: $1}}/; s/claimName: demo/claimName: $1-$number/; s/app: demo/app: $1-$number/g; s/sleep 0.2/sleep 3/"
        echo ---
    done | kubectl apply -f - >&2
    all_run "$1"
}
all_run() { kubectl wait --for=condition=Available deployment -l "app=$1" --timeout=600s >&2; } # LABEL
no_pods() { # LABEL
    kubectl delete deployment -l "app=$1" --timeout=120s >&2; no_claims "$1"
    until_true 180 'detaches' nothing_attached
}

# What there is of volumes anywhere: in the API, at the RDS, on the nodes.
left_of() { # VOLUME...
    # shellcheck disable=SC2016 # the node's own name
    local all look='sed "s/^/$name: /" /sys/class/nvme-subsystem/*/subsysnqn 2>/dev/null; echo LOOKED'
    all=$(kubectl get persistentvolumes,volumeattachments,cleatvolumes \
            -o jsonpath='{range .items[*]}{.kind} {.metadata.name} {.spec.source.persistentVolumeName}{"\n"}{end}' &&
        "$built/rig" exec "$(cat "$cluster/run")" rds -- sh -c 'find /data/rds -type f && ls /sys/kernel/config/nvmet/subsystems' &&
        on_node node-a "$look" && on_node node-b "$look") && [ "$(grep -c '^LOOKED' <<<"$all")" = 2 ] ||
        { echo 'not all of it could be looked at'; return; }
    grep -F "$(printf '%s\n' "${@#pvc-}")" <<<"$all" || true
}
gone() { # VOLUME...: their claims were deleted, and nothing is left of them
    local left deadline=$((SECONDS + 240))
    while left=$(left_of "$@"); [ -n "$left" ]; do
        [ $SECONDS -lt $deadline ] || die "left of volumes that were deleted: $left"
        sleep 3
    done
}

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
volume_of() { kubectl get pvc "$1" -o jsonpath='{.spec.volumeName}'; } # CLAIM
# Why the detach of a volume's one attachment has failed, as Kubernetes keeps it.
detach_error() { # VOLUME
    kubectl get volumeattachment -o jsonpath="{.items[?(@.spec.source.persistentVolumeName==\"$1\")].status.detachError.message}"
}
detach_fails() { [[ $(detach_error "$1") == *"$2"* ]]; } # VOLUME WORDS
going() { [ -n "$(kubectl get volumeattachment -o jsonpath="{.items[?(@.spec.source.persistentVolumeName==\"$1\")].metadata.deletionTimestamp}")" ]; } # VOLUME

# What a trial that has failed may have left: faults, networks that are down, machines that stand still, an API server that is away or
# slow, cordons, pods. Not all of it can be put right, so of several that failed the first one counts most.
put_right() {
    local node
    (rds_faults DELETE)
    for node in node-a node-b; do links "$node" up; (machine "$node" cont); (writes_no_more "$node"); done
    if [ -e "$cluster/started/slow" ]; then (behind_slow_etcd 0 && kill -- "-$(cat "$cluster/started/slow")" && rm "$cluster/started/slow"); fi
    ready || (api_server && until_true 120 'the API server' ready)
    if [ -e "$cluster/rules" ]; then (right_of with); fi
    kubectl uncordon node-a node-b
    kubectl delete deployments,pods --all --timeout=120s; kubectl delete pvc --all --timeout=120s
    (until_true 180 'detaches' nothing_attached; until_true 240 'two controllers' both_ready)
}

# Without a name all of them: those that have failed are named in the end.
trial() { # [NAME [NUMBER]]
    local name names=("${trial_names[@]}") began failed=()
    if [ -n "${1:-}" ]; then
        [[ " ${trial_names[*]} " == *" $1 "* ]] || die "no trial is called '$1'; the trials: ${trial_names[*]}"
        names=("$1")
    fi
    for name in "${names[@]}"; do
        began=$SECONDS
        say "trial $name"
        # A shell of its own: a condition would take its `set -e` away, and what ends it is to end nothing else.
        set +e; (set -e; "trial_${name//-/_}" "${@:2}"); local ended=$?; set -e
        if [ "$ended" = 0 ]; then
            say "trial $name: as it should be ($((SECONDS - began)) s)"
        else
            failed+=("$name"); say "trial $name: FAILED ($((SECONDS - began)) s)"
            if [ ${#names[@]} -gt 1 ]; then put_right >&2 || true; fi
        fi
    done
    [ ${#failed[@]} = 0 ] || die "failed: ${failed[*]}"
}
