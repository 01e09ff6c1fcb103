{{/* Labels of every object. Names are fixed: CRDs, key blocks and agents are the cluster's, so that it holds one release. */}}
{{- define "vtap.labels" -}}
app.kubernetes.io/name: vtap
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What selects the pods of a component: (dict "root" $ "component" "agent"). Never changes, as selectors can't. */}}
{{- define "vtap.selector" -}}
app.kubernetes.io/name: vtap
vtap.dev/component: {{ .component }}
{{- end }}

{{/* An image: (dict "root" $ "image" .Values.agent.image). */}}
{{- define "vtap.image" -}}
{{- $name := printf "%s/%s" (trimSuffix "/" .root.Values.image.registry) .image.repository -}}
{{- if .image.digest -}}
{{ $name }}@{{ .image.digest }}
{{- else -}}
{{ $name }}:{{ .image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "vtap.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What everything but the agent runs with: the restricted Pod Security level. */}}
{{- define "vtap.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "vtap.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "vtap.uninstallHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{- define "vtap.testHook" -}}
helm.sh/hook: test
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* Of collectors' pods: the fields that `vtap-operator --collector-pod` takes, as in a pod. */}}
{{- define "vtap.collectorPod" -}}
{{- $fields := pick .Values.collector "resources" "priorityClassName" "nodeSelector" "tolerations" "affinity" -}}
{{- with .Values.collector.podAnnotations }}{{ $_ := set $fields "annotations" . }}{{ end -}}
{{- $given := dict -}}
{{- range $name, $value := $fields }}{{ if $value }}{{ $_ := set $given $name $value }}{{ end }}{{ end -}}
{{- toYaml $given -}}
{{- end }}

{{/* The name of a collector's Service, by its TapDestination's: as collector_name of vtap_api.names makes it. */}}
{{- define "vtap.collectorName" -}}
{{- $plain := printf "vtap-collector-%s" (. | replace "." "-") -}}
{{- if and (eq $plain (printf "vtap-collector-%s" .)) (le (len $plain) 59) -}}
{{- $plain -}}
{{- else -}}
{{- printf "%s-%s" (regexReplaceAll "[-.]+$" (trunc 48 $plain) "") (. | sha256sum | trunc 10) -}}
{{- end -}}
{{- end }}
