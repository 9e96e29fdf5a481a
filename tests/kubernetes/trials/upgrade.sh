# Sourced by hack/kubernetes: an upgrade, and a rollback, under a pod that writes.

images_are() { # TAG
    local all; all=$(kubectl -n cleat-system get pods -l app.kubernetes.io/name=cleat -o jsonpath='{range .items[*]}{.spec.containers[0].image}{"\n"}{end}')
    [ "$(grep -c ":$1\$" <<<"$all")" = 4 ] && [ "$(wc -l <<<"$all")" = 4 ]
}
rolled_out() { # TAG
    kubectl -n cleat-system rollout status deployment/cleat-controller daemonset/cleat-agent --timeout=600s >&2
    until_true 120 "controllers and agents of $1" images_are "$1"
    until_true 120 'a leader' some_leader
    goes_on 60
}

# The same programs under another tag: what is tried is that every one of them ends and begins under a pod that writes.
trial_upgrade() {
    local version; version=$(sed -n 's/^appVersion: //p' "$top/deploy/chart/Chart.yaml")
    writing
    helm upgrade cleat "$top/deploy/chart" --namespace cleat-system --reuse-values --set controller.image.tag=next --set agent.image.tag=next >&2
    rolled_out next
    kubectl delete pod writes --timeout=120s >&2
    until_true 120 'a detach' nothing_attached
    writing
    helm rollback cleat --namespace cleat-system >&2
    rolled_out "$version"
    no_pod
    until_true 240 'two controllers' both_ready
}
