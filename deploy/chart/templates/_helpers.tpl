{{- define "cleat.labels" -}}
app.kubernetes.io/name: cleat
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "cleat.selector" -}}
app.kubernetes.io/name: cleat
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "cleat.image" -}}
{{ required "controller.image.repository and agent.image.repository: to where did you push the images?" .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "cleat.scrape" -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ . | quote }}
prometheus.io/path: /metrics
{{- end }}

{{- define "cleat.serving-name" -}}
cleat-agents.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "cleat.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
