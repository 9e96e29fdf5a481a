# Sourced by hack/kubernetes: VMs that move, as KubeVirt's objects say (tests/kubevirt), around pods that kubelets run.

# A claim as the disk of a VM that is to move has it, by a StorageClass that gives a migration so long.
vm_disk() { # NAME SECONDS [SIZE]: prints the volume
    kubectl get storageclass cleat -o json | python3 -c '
import json, sys
kind = json.load(sys.stdin)
kind["metadata"] = {"name": "cleat-vms-" + sys.argv[1]}
kind["parameters"] = dict(kind.get("parameters") or {}, migrationTimeoutSeconds=sys.argv[1])
print(json.dumps(kind))' "$2" | kubectl apply -f - >&2
    printf 'apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: %s}\nspec: {accessModes: [ReadWriteMany], volumeMode: Block, storageClassName: cleat-vms-%s, resources: {requests: {storage: %s}}}\n' "$1" "$2" "${3:-64Mi}" |
        kubectl apply -f - >&2
    kubectl wait --for=jsonpath='{.status.phase}'=Bound "pvc/$1" --timeout=120s >&2
    kubectl get pvc "$1" -o jsonpath='{.spec.volumeName}'
}
# The VMs with their pods and migrations, and the claim: nobody but the player takes the finalizers away that KubeVirt would.
no_vms() { # CLAIM VOLUME
    local object kinds=virtualmachineinstancemigrations,virtualmachineinstances
    kubectl delete pods -l kubevirt.io --grace-period=2 --timeout=120s >&2
    kubectl delete "$kinds" --all --wait=false >&2
    for object in $(kubectl get "$kinds" -o name); do kubectl patch "$object" --type=merge -p '{"metadata":{"finalizers":null}}' >&2; done
    until_true 180 'detaches' nothing_attached
    kubectl delete pvc "$1" --timeout=120s >&2
    gone "$2"
}

# How the last migration of a volume stands, who is the source, and the node that has it alone.
migration_is() { # VOLUME RESULT NODES
    local now; now=$(kubectl get cleatvolume "$1" -o jsonpath='{.spec.record.migration.result} {.spec.record.attachments[*].node}' 2>/dev/null) &&
        [ "$now" = "$2 $3" ]
}
has_event() { [ -n "$(kubectl get events -A --field-selector="reason=$1" --no-headers 2>/dev/null | grep -F "$2")" ]; } # REASON VOLUME

aim() { # SCENE
    case $1 in
    completes) echo completed node-b MigrationCompleted ;;
    there-and-back) echo completed node-a MigrationCompleted ;;
    aborted-half-way | target-fails) echo rolled_back node-a MigrationRolledBack ;;
    esac
}
# Each scene by a VM of its own: what becomes of it, as the record says, and nothing left over.
trial_migration() {
    local scene result node event volume
    for scene in completes there-and-back aborted-half-way target-fails; do
        read -r result node event <<<"$(aim "$scene")"
        volume=$(vm_disk "vm-$scene" 300)
        kubevirt "$scene" --node node-a --node node-b --vm "$scene=vm-$scene" >&2
        until_true 240 "$scene to be $result, with $node alone" migration_is "$volume" "$result" "$node"
        until_true 60 "an Event $event" has_event "$event" "$volume"
        nobody_fenced "a VM has moved ($scene)"
        no_vms "vm-$scene" "$volume"
        say "$scene: $result, and the volume on $node alone"
    done
}

# A migration that stands still: the player waits for a line before each step, and gets none from this one on.
stands_still() { # CLAIM STEP
    local lines=$cluster/player
    rm -f "$lines"; mkfifo "$lines"; : >"$cluster/logs/player.log"
    # shellcheck disable=SC2016 # the inner shell's
    start player bash -c '"$@" <>"$0"' "$lines" "$top/hack/kubernetes" kubevirt completes --node node-a --node node-b --vm "still=$1" --by-line
    exec 8<>"$lines"
    until grep -q "  $2" "$cluster/logs/player.log"; do plays || die "the player: $(tail -n 3 "$cluster/logs/player.log")"; one_more_step; done
}
plays() { kill -0 "$(cat "$cluster/started/player")" 2>/dev/null; }
one_more_step() { # until the step after it is named
    local log=$cluster/logs/player.log deadline=$((SECONDS + 200)) before
    before=$(wc -l <"$log")
    echo >&8
    until [ "$(wc -l <"$log")" -gt "$before" ] || ! plays; do
        [ $SECONDS -lt $deadline ] || die "the player does not get on: $(tail -n 3 "$log")"
        sleep 0.5
    done
}
goes_to_its_end() {
    while plays; do one_more_step; done
    exec 8>&-
    wait "$(cat "$cluster/started/player")" || die "the player: $(tail -n 3 "$cluster/logs/player.log")"
    rm "$cluster/started/player"
}
