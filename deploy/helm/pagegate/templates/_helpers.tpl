{{- define "pagegate.name" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "pagegate.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pagegate.labels" -}}
{{ include "pagegate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "pagegate.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "pagegate.policyConfigMap" -}}
{{- .Values.policy.existingConfigMap | default (printf "%s-policy" (include "pagegate.name" .)) -}}
{{- end }}

{{- define "pagegate.tlsSecret" -}}
{{- .Values.tls.secretName | default (printf "%s-tls" (include "pagegate.name" .)) -}}
{{- end }}


{{- define "pagegate.nodeLabels" -}}
{{- if .Values.snp.nodeLabels -}}
{{ toYaml .Values.snp.nodeLabels }}
{{- else if eq .Values.snp.guest "pod" -}}
feature.node.kubernetes.io/cpu-security.sev.snp.enabled: "true"
{{- else if eq .Values.snp.guest "node" -}}
feature.node.kubernetes.io/sev-guest: "true"
{{- end -}}
{{- end }}

{{- define "pagegate.privileged" -}}
{{- if eq .Values.snp.device.mode "hostPath" -}}
{{- if not .Values.snp.device.acceptPrivileged -}}
{{- fail "snp.device.mode hostPath needs a privileged container that runs as root (Pod Security 'privileged'). Use a device plugin (snp.device.mode devicePlugin), or say snp.device.acceptPrivileged: true" -}}
{{- end -}}
true
{{- end -}}
{{- end }}

{{/* The file that `pagegate serve --config` reads: what the chart settles, and .Values.options. */}}
{{- define "pagegate.config" -}}
{{- $regions := list -}}
{{- range .Values.regions -}}
{{- $base := .baseGpa | default "0x100000000" -}}
{{- $place := ternary (printf ":/var/lib/pagegate/regions/%s" .name) "" (.persistent | default false) -}}
{{- $regions = append $regions (printf "%s=%s@%s%s" .name .size $base $place) -}}
{{- end -}}
{{- $settled := dict
  "listen" "0.0.0.0:7443"
  "health_listen" "0.0.0.0:7444"
  "prometheus_host" "0.0.0.0"
  "prometheus_port" (int .Values.metrics.port)
  "platform" .Values.platform
  "policy" "/etc/pagegate/policy/policy.yaml"
  "state_dir" "/var/lib/pagegate"
  "region" $regions -}}
{{- if eq .Values.platform "simulated" -}}
{{- $settled = set $settled "allow_simulated" true -}}
{{- end -}}
{{- if ne .Values.tls.mode "none" -}}
{{- $settled = merge $settled (dict "tls_cert" "/etc/pagegate/tls/tls.crt" "tls_key" "/etc/pagegate/tls/tls.key") -}}
{{- end -}}
{{- merge $settled .Values.options | toYaml -}}
{{- end }}
