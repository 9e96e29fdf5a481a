# Sourced by hack/kubernetes: what becomes of nodes, and of the pods on them.

registered() { # AGENT: so often it has said so
    kubectl -n cleat-system logs "$1" | grep -c 'has registered this node' || true
}
agent_of() { # NODE
    kubectl -n cleat-system get pods -l app.kubernetes.io/component=agent --field-selector="spec.nodeName=$1" -o jsonpath='{.items[0].metadata.name}'
}
registered_again() { [ "$(registered "$1")" -gt "$2" ]; } # AGENT BEFORE

# Somebody empties the folder in which the kubelet finds drivers.
trial_registry_wiped() {
    local agent before
    agent=$(agent_of node-a)
    before=$(registered "$agent")
    on_node node-a 'rm -rf /var/lib/kubelet/plugins_registry/* && echo WIPED' | grep -q WIPED || die 'the folder was not emptied'
    until_true 120 'a new registration of node-a' registered_again "$agent" "$before"
    kubectl cordon node-b >&2
    writing; kubectl uncordon node-b >&2; no_pod
}

boots() { grep -c NODE-UP "$cluster/logs/$1.console"; } # NODE: so often its machine has come up
booted_again() { [ "$(boots "$1")" -gt "$2" ]; } # NODE BEFORE
boot_of() { on_node "$1" 'echo "BOOT $(cat /proc/sys/kernel/random/boot_id)"' | sed -n 's/^BOOT //p'; } # NODE
# Who has it by its record, how far that has come, under which boot this was proven, and which grant it is.
has_it() { kubectl get cleatvolume "$1" -o jsonpath='{range .spec.record.attachments[*]}{.node} {.phase.type} {.bootId} {.epoch}{end}'; } # VOLUME
has_it_as() { [ "$(has_it "$1")" = "$2" ]; } # VOLUME WHAT
asks() { kubectl get volumeattachment -o jsonpath='{range .items[*]}{.metadata.uid} {.spec.nodeName} {.status.attached}{end}'; }
container_again() { local now; now=$(begun_again) && [ "${now:-0}" -gt 0 ]; }

# A node loses power under a pod that writes, and comes back as the same node. Nobody asks again: the VolumeAttachment stays, the
# kubelet begins the container again, and the agent connects under the same grant, by another boot. The detach after that rests on
# this boot.
trial_power_cycle() {
    local node volume boot grant asked pod up again times evidence
    writing
    node=$(node_of writes default) volume=$(volume_of writes) asked=$(asks) pod=$(kubectl get pod writes -o jsonpath='{.metadata.uid}')
    boot=$(boot_of "$node") grant=$(has_it "$volume")
    [[ $grant == "$node ready $boot "?* ]] || die "the record of $volume is not of $node, ready, in the boot $boot: $grant"
    grant=${grant##* }
    # The folder of containers has a file system without a journal: only what was a second ago is to be lost.
    on_node "$node" 'sync && echo SYNCED' | grep -q SYNCED || die "$node does not write out what it has"
    up=$(boots "$node"); say "$node loses power; the leader is on $(node_of "$(leader)")"
    machine "$node" set-action '{"reboot":"reset"}'; machine "$node" system_reset; machine "$node" set-action '{"reboot":"shutdown"}'
    until_true 240 "the machine $node" booted_again "$node" "$up"
    runs_pods "$node" || die "the kubelet of $node was not started; look in $cluster/logs/$node.setup"
    until_true 600 "the container of the pod on $node" container_again
    kubectl wait --for=condition=Ready pod/writes --timeout=180s >&2
    [ "$(kubectl get pod writes -o jsonpath='{.metadata.uid}')" = "$pod" ] || die 'the pod is another one'
    times=$(begun_again); goes_on 60 "$times"
    again=$(boot_of "$node")
    [ -n "$again" ] && [ "$again" != "$boot" ] || die "$node has not begun again: its boot was $boot, and is $again"
    [ "$(asks)" = "$asked" ] || die "the VolumeAttachment was $asked, and is $(asks)"
    until_true 60 "$node, ready in the boot $again under the grant $grant, in the record" has_it_as "$volume" "$node ready $again $grant"
    goes_on 60 "$times"; nobody_fenced "$node had no power for a while"
    kubectl delete pod writes --timeout=120s >&2
    until_true 180 'a detach' nothing_attached # the bound for writes on their way counts from the reboot
    evidence=$(kubectl get cleatvolume "$volume" -o jsonpath='{.spec.record.pastEvidence[0]}'); say "detached: $evidence"
    [[ $evidence == *'"type":"agent-absent"'* && $evidence == *"\"bootId\":\"$again\""* ]] || die "the detach does not rest on the agent in the boot $again"
    kubectl delete pvc writes --timeout=120s >&2; gone "$volume"
    until_true 60 'all agents at the leader' all_agents
    until_true 300 'two controllers' both_ready
}

# One more VolumeAttachment asks for an RWO volume, of the other node: it is refused by its code, with the node that has the volume,
# and an Event says so. Nothing is left of it, and the pod goes on.
trial_conflict() {
    local node volume other
    writing
    node=$(node_of writes default) volume=$(volume_of writes)
    case $node in node-a) other=node-b ;; *) other=node-a ;; esac
    inside python3 "$here/conflict.py" https://127.0.0.1:16443 admin-token "$volume" "$other" "$node" >&2
    until_true 60 'an Event AttachmentConflict' has_event AttachmentConflict "$volume"
    record_is "$volume" "$node" || die "the record says that the volume is on: $(has_it "$volume")"
    goes_on 60; nobody_fenced 'two nodes wanted a volume'; no_pod; gone "$volume"
}

none_on() { local all; all=$(attachments) && ! grep -q "^$1 " <<<"$all"; } # NODE

# A node with so many pods is drained: all of them run on the other one, and nothing is left behind.
trial_drain() { # [PODS]
    local number=${1:-16} began volumes
    kubectl cordon node-b >&2; pods drain "$number"; kubectl uncordon node-b >&2
    volumes=$(kubectl get pvc -l app=drain -o jsonpath='{.items[*].spec.volumeName}')
    began=$SECONDS
    kubectl drain node-a --ignore-daemonsets --delete-emptydir-data --force --timeout=600s >&2
    until_true 300 'detaches of all' none_on node-a
    all_run drain
    say "$number pods run on node-b $((SECONDS - began)) s after the drain began"
    kubectl uncordon node-a >&2
    # shellcheck disable=SC2086 # one argument a volume
    no_pods drain; gone $volumes
    until_true 240 'two controllers' both_ready
}

# The demo's pod, and where it is: `from`, `volume` and `file` are the caller's.
demo_writes() {
    kubectl apply -f "$here/demo.yaml" >&2
    kubectl wait --for=condition=Available deployment/demo --timeout=240s >&2
    from=$(demo_pod) volume=$(volume_of demo)
    file=$(file_of "$volume")
    until_true 60 'a write of the pod' has_written "$from"
}
# Until the pod writes elsewhere; what its first node had written by the proof is `at_proof`, the caller's.
moves() { # SECONDS
    local to
    until_true "$1" 'a proof' not_attached "$from" "$volume"
    at_proof=$(last_write "$from")
    # The attach/detach controller and the kubelet hold off for up to two minutes each, one after the other.
    until_true 600 'the pod elsewhere' runs_on_another "$from"
    to=$(demo_pod); until_true 120 "a write on $to" has_written "$to"
}
# The first node is there again, and has nothing of the volume: no write of its own has come since.
came_back() {
    until_true 400 "$from Ready" is_ready "$from"
    until_true 400 "$from without the volume" readmitted "$volume"
    local at_end; at_end=$(last_write "$from")
    say "the last write of $from has number $at_proof at the proof, and $at_end now"
    [[ $at_proof =~ ^[0-9]+$ && $at_end =~ ^[0-9]+$ ]] || die "the last write of $from cannot be read"
    [ "$at_end" = "$at_proof" ] || die "writes of $from landed after the proof"
    kubectl delete deployment demo --timeout=120s >&2; kubectl delete pvc demo --timeout=120s >&2
    until_true 120 'a detach' nothing_attached
    until_true 300 'two controllers' both_ready
}
kubelet_again() { # NODE: what registers its Node is a kubelet that starts
    on_node "$1" "pkill -9 -x kubelet; pkill -x kube-proxy; sleep 1; /payload/kubelet.sh $api; echo STARTED" | grep -q STARTED || die "the kubelet of $1 was not started"
}
asked_off() { going "$volume" || not_attached "$from" "$volume"; } # where the fence is fast, it is over between two looks
proven_by_fence() { [[ " $(fenced_from "$volume") " == *" $from "* ]] || die "no record says that $from is fenced from $volume"; }

# A node is cut off, and somebody deletes its Node. That proves nothing: it is fenced before its pod runs elsewhere. Kubernetes
# waits for its six minutes until it asks for that.
trial_node_deleted() {
    local from volume file at_proof
    demo_writes
    links "$from" down
    until_true 180 "$from NotReady" not_ready "$from"
    kubectl delete node "$from" >&2
    moves 900; proven_by_fence
    links "$from" up; kubelet_again "$from"
    came_back
    until_true 60 'an Event NodeReadmitted' has_event NodeReadmitted "$volume"
}

# Nobody marks the node that is cut off: after six minutes Kubernetes asks for the detach, whatever the node does.
trial_force_detach() {
    local from volume file at_proof
    demo_writes
    links "$from" down
    until_true 180 "$from NotReady" not_ready "$from"
    kubectl delete pod -l app=demo --force --grace-period=0 >&2
    until_true 480 'the call for a detach after six minutes' asked_off
    moves 300; proven_by_fence
    links "$from" up
    came_back
    until_true 60 'an Event NodeReadmitted' has_event NodeReadmitted "$volume"
}

# The same, where only the kubelet is dead: the agent is heard, a container goes on writing, and the detach is refused, because the
# device is in use. That lasts as long as the agent's token, which nobody renews any more; a node that is silent is fenced. So the
# agent gets a new token first, which is good for ten minutes, and the leader is on the node that goes on.
trial_force_detach_heard() {
    local from volume file at_proof before
    demo_writes
    if [ "$(node_of "$(leader)")" = "$from" ]; then new_leader; until_true 300 'two controllers' both_ready; fi
    before=$(agent_of "$from")
    kubectl -n cleat-system delete pod "$before" --timeout=120s >&2
    until_true 180 "a new agent on $from" another_agent "$before"
    until_true 60 'all agents at the leader' all_agents
    on_node "$from" 'pkill -9 -x kubelet && echo KILLED' | grep -q KILLED || die 'the kubelet was not killed'
    until_true 180 "$from NotReady" not_ready "$from"
    kubectl delete pod -l app=demo --force --grace-period=0 >&2
    until_true 480 'the call for a detach after six minutes' asked_off
    until_true 240 'a detach that is refused, or a fence' refused_or_fenced
    if not_attached "$from" "$volume"; then
        say "fenced: the token of the agent has ended"; proven_by_fence
    else
        say "the detach is refused: $(detach_error "$volume")"
        before=$(last_write "$from"); sleep 5
        [ "$(last_write "$from")" -gt "$before" ] || die "the container on $from does not write any more"
        [ -z "$(demo_pod)" ] || die 'the pod runs elsewhere while its container on the first node writes'
    fi
    kubelet_again "$from"
    moves 300
    came_back
}
another_agent() { # BEFORE: one that is ready
    local now; now=$(agent_of "$from") && [ -n "$now" ] && [ "$now" != "$1" ] &&
        [ "$(kubectl -n cleat-system get pod "$now" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = True ]
}
refused_or_fenced() { detach_fails "$volume" 'in use' || not_attached "$from" "$volume"; }
